import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashmore.errors import RunError, StorageError
from flashmore.runs import Checkpoint, Run, records

MakeRun = Callable[[Path], Run]
MakeCheckpoint = Callable[..., Checkpoint]
StepOf = Callable[[Checkpoint], int]

FILES = ("weights.safetensors", "optimizer.pt", "state.json")

posix = pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")


@pytest.fixture
def run(make_run: MakeRun, tmp_path: Path) -> Run:
    return make_run(tmp_path / "run")


@pytest.fixture(scope="module")
def module_run(
    make_run: MakeRun, make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    run = make_run(tmp_path_factory.mktemp("module") / "run")
    run.save_checkpoint("last", make_checkpoint(1))
    return run


def seal_again(folder: Path) -> None:
    """Give altered files the right checksums, as somebody who means it would."""
    state = json.loads((folder / "state.json").read_bytes())
    del state["sha256"]
    state["files"] = {name: records.digest((folder / name).read_bytes()) for name in FILES[:2]}
    (folder / "state.json").write_bytes(records.encode(records.seal(state)))


def test_a_checkpoint_comes_back_as_it_was(run: Run) -> None:
    parameter = torch.nn.Parameter(torch.randn(3, 2, generator=torch.Generator().manual_seed(1)))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.grad = torch.ones(3, 2)
    optimizer.step()
    weights = {
        "a": parameter,
        "view": parameter.t(),
        "ids": torch.arange(3),
        "half": torch.ones(2).bfloat16(),
    }
    state = {"step": 7, "best": 0.1 + 0.2, "random": [1, 2], "none": None, "nested": {"k": "zoë"}}
    run.save_checkpoint("last", Checkpoint(weights, optimizer.state_dict(), state))

    loaded = Run.open(run.path).load_checkpoint("last")
    assert loaded.state == state
    assert loaded.weights.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(loaded.weights[name], value)
        assert loaded.weights[name].dtype == value.dtype
        assert not loaded.weights[name].requires_grad
    again = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3, 2))])
    again.load_state_dict(loaded.optimizer)
    assert again.param_groups[0]["lr"] == 0.1
    moments = (optimizer.state_dict()["state"][0], again.state_dict()["state"][0])
    assert all(torch.equal(moments[0][name], moments[1][name]) for name in ("step", "exp_avg", "exp_avg_sq"))


def test_last_and_best_are_apart(run: Run, make_checkpoint: MakeCheckpoint, step_of: StepOf) -> None:
    assert not run.has_checkpoint("last")
    run.save_checkpoint("last", make_checkpoint(1))
    assert run.has_checkpoint("last")
    assert not run.has_checkpoint("best")
    run.save_checkpoint("best", make_checkpoint(1))
    run.save_checkpoint("last", make_checkpoint(2))
    assert step_of(run.load_checkpoint("best")) == 1
    assert step_of(run.load_checkpoint("last")) == 2
    folders = sorted(entry.name for entry in run.path.iterdir() if entry.is_dir())
    assert folders == ["best", "last"]
    assert sorted(entry.name for entry in (run.path / "last").iterdir()) == sorted(FILES)


def test_the_optimizer_is_left_unread_when_not_asked_for(run: Run, make_checkpoint: MakeCheckpoint) -> None:
    run.save_checkpoint("best", make_checkpoint(3))
    (run.path / "best" / "optimizer.pt").unlink()
    loaded = run.load_checkpoint("best", optimizer=False)
    assert loaded.state["step"] == 3
    assert loaded.optimizer == {}


def test_a_checkpoint_that_is_not_there_is_named(run: Run) -> None:
    with pytest.raises(RunError, match="'best'") as caught:
        run.load_checkpoint("best")
    assert caught.value.exit_code == 2
    assert str(run.path) in caught.value.wanted


@pytest.mark.parametrize("name", FILES)
def test_every_cut_is_found(run: Run, make_checkpoint: MakeCheckpoint, name: str) -> None:
    run.save_checkpoint("last", make_checkpoint(1))
    path = run.path / "last" / name
    data = path.read_bytes()
    for length in (0, 1, 7, 8, 9, len(data) // 2, len(data) - 2):
        path.write_bytes(data[:length])
        with pytest.raises(RunError, match=name):
            run.load_checkpoint("last")
    path.unlink()
    with pytest.raises(RunError, match="missing"):
        run.load_checkpoint("last")


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
def test_every_altered_bit_is_found(module_run: Run, name: str, data: st.DataObject) -> None:
    path = module_run.path / "last" / name
    intact = path.read_bytes()
    altered = bytearray(intact)
    altered[data.draw(st.integers(0, len(intact) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(altered)
    try:
        with pytest.raises(RunError):
            module_run.load_checkpoint("last")
    finally:
        path.write_bytes(intact)


def test_files_of_two_steps_do_not_mix(run: Run, make_checkpoint: MakeCheckpoint) -> None:
    run.save_checkpoint("best", make_checkpoint(1))
    run.save_checkpoint("last", make_checkpoint(2))
    for name in FILES:
        shutil.copy(run.path / "best" / name, run.path / "mixed")
        shutil.copy(run.path / "last" / name, run.path / "kept")
        shutil.copy(run.path / "mixed", run.path / "last" / name)
        with pytest.raises(RunError, match="SHA-256"):
            run.load_checkpoint("last")
        shutil.copy(run.path / "kept", run.path / "last" / name)


class Harmful:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["pickle", "torch", "torch legacy"])
@pytest.mark.parametrize("name", FILES[:2])
def test_code_in_a_file_with_the_right_checksum_does_not_run(
    run: Run, make_checkpoint: MakeCheckpoint, tmp_path: Path, form: str, name: str
) -> None:
    harmful = {"state": Harmful(tmp_path / "harmed"), "param_groups": []}
    buffer = io.BytesIO()
    if form == "pickle":
        pickle.dump(harmful, buffer)
    else:
        torch.save(harmful, buffer, _use_new_zipfile_serialization=form == "torch")
    run.save_checkpoint("last", make_checkpoint(1))
    (run.path / "last" / name).write_bytes(buffer.getvalue())
    seal_again(run.path / "last")
    with pytest.raises(RunError, match=name):
        run.load_checkpoint("last")
    assert not (tmp_path / "harmed").exists()
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=False) if form != "pickle" else pickle.loads(
        buffer.getvalue()
    )
    assert (tmp_path / "harmed").exists(), "the file would have done harm"


@pytest.mark.parametrize("name", FILES[:2])
@given(
    junk=st.binary(max_size=200)
    | st.builds(pickle.dumps, st.lists(st.integers()))
    | st.just(b"PK\x03\x04junk")
)
def test_junk_with_the_right_checksum_is_refused(module_run: Run, name: str, junk: bytes) -> None:
    path, state = module_run.path / "last" / name, module_run.path / "last" / "state.json"
    intact = {path: path.read_bytes(), state: state.read_bytes()}
    path.write_bytes(junk)
    seal_again(path.parent)
    try:
        with pytest.raises(RunError, match=name):
            module_run.load_checkpoint("last")
    finally:
        for file, data in intact.items():
            file.write_bytes(data)


@pytest.mark.parametrize(
    "content", [{}, {"files": {}, "state": 3}, {"files": 3, "state": {}}, {"files": {}, "state": {}}]
)
def test_a_state_that_describes_nothing_is_refused(
    run: Run, make_checkpoint: MakeCheckpoint, content: dict[str, object]
) -> None:
    run.save_checkpoint("last", make_checkpoint(1))
    (run.path / "last" / "state.json").write_bytes(records.encode(records.seal(content)))
    with pytest.raises(RunError):
        run.load_checkpoint("last")


def test_a_state_that_json_does_not_know_loses_nothing(
    run: Run, make_checkpoint: MakeCheckpoint, step_of: StepOf
) -> None:
    run.save_checkpoint("last", make_checkpoint(1))
    with pytest.raises(ValueError, match="JSON"):
        run.save_checkpoint("last", Checkpoint({}, {}, {"best": float("inf")}))
    assert step_of(run.load_checkpoint("last")) == 1


# What a writer of step 2 can leave behind, as the folders of `last` and what each holds: a step, or the step
# with its last file cut off. None: nothing to be loaded.
CRASHES = {
    "before the first save": ({}, None),
    "while the first is written": ({"last.new": (1, "cut")}, None),
    "first save written, not renamed": ({"last.new": (1, "whole")}, 1),
    "while the second is written": ({"last": (1, "whole"), "last.new": (2, "cut")}, 1),
    "second written, nothing renamed": ({"last": (1, "whole"), "last.new": (2, "whole")}, 1),
    "between the renames": ({"last.old": (1, "whole"), "last.new": (2, "whole")}, 2),
    "between the renames, new one lost by the disk": ({"last.old": (1, "whole"), "last.new": (2, "cut")}, 1),
    "new one gone altogether": ({"last.old": (1, "whole")}, 1),
    "renamed, old one still whole": ({"last": (2, "whole"), "last.old": (1, "whole")}, 2),
    "while the old one is deleted": ({"last": (2, "whole"), "last.old": (1, "cut")}, 2),
    "two crashes": ({"last": (2, "whole"), "last.old": (1, "cut"), "last.new": (3, "cut")}, 2),
}


@pytest.mark.parametrize("cut", FILES)
@pytest.mark.parametrize(("folders", "step"), CRASHES.values(), ids=CRASHES)
def test_every_crash_point_leaves_one_whole_checkpoint(
    run: Run,
    make_checkpoint: MakeCheckpoint,
    step_of: StepOf,
    folders: dict[str, tuple[int, str]],
    step: int | None,
    cut: str,
) -> None:
    for name, (held, form) in folders.items():
        run.save_checkpoint("best", make_checkpoint(held))
        (run.path / "best").rename(run.path / name)
        if form == "cut":
            file = run.path / name / cut
            file.write_bytes(file.read_bytes()[:-2])
    before = sorted(run.path.rglob("*"))
    opened = Run.open(run.path)
    assert opened.has_checkpoint("last") == (step is not None)
    if step is not None:
        assert step_of(opened.load_checkpoint("last")) == step
    assert sorted(run.path.rglob("*")) == before, "reading changed the folder"
    opened.save_checkpoint("last", make_checkpoint(9))
    assert step_of(opened.load_checkpoint("last")) == 9
    assert [entry.name for entry in run.path.iterdir() if entry.is_dir()] == ["last"]


WRITER = """
import os, signal, sys, time
from pathlib import Path
import torch
from flashmore.runs import Checkpoint, Run

def checkpoint(step):
    values = torch.full((4,), float(step))
    return Checkpoint({"values": values}, {"state": {0: {"exp_avg": values}}}, {"step": step})

def in_child(act):
    child = os.fork()
    if not child:
        act()
        os._exit(0)
    return child
"""

# An audit event comes before the act it tells of, so that dying there leaves what the acts before have made.
DIE_AT_EACH_ACT = """
import shutil
ACTS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
def save_and_die_at(act, home):
    left = act
    def count(event, arguments):
        nonlocal left
        if event in ACTS or event == "open" and "w" in (arguments[1] or ""):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    two, run = checkpoint(2), Run.open(home)
    sys.addaudithook(count)
    run.save_checkpoint("last", two)

source, target = sys.argv[1:]
for act in range(100):
    home = Path(target) / str(act)
    shutil.copytree(source, home)
    child = in_child(lambda: save_and_die_at(act, home))
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
print(act)
"""


def start(code: str, *arguments: Path | str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", WRITER + code, *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@posix
@pytest.mark.parametrize("first", [True, False])
def test_a_save_killed_before_any_of_its_acts(
    run: Run, make_checkpoint: MakeCheckpoint, step_of: StepOf, tmp_path: Path, first: bool
) -> None:
    if not first:
        run.save_checkpoint("last", make_checkpoint(1))
    homes = tmp_path / "homes"
    homes.mkdir()
    writer = start(DIE_AT_EACH_ACT, run.path, homes)
    acts = int(writer.communicate()[0])
    assert writer.returncode == 0
    assert acts == (5 if first else 10)
    seen = []
    for act in range(acts + 1):
        opened = Run.open(homes / str(act))
        seen.append(step_of(opened.load_checkpoint("last")) if opened.has_checkpoint("last") else 0)
        opened.save_checkpoint("last", make_checkpoint(3))
        assert step_of(opened.load_checkpoint("last")) == 3
        assert [entry.name for entry in opened.path.iterdir() if entry.is_dir()] == ["last"]
    assert seen == sorted(seen), "a later death may not bring back an earlier step"
    assert set(seen) == ({0, 2} if first else {1, 2})


SAVE_AND_BE_KILLED = """
import random
home = Path(sys.argv[1])
def save_for_ever():
    step = Run.open(home).load_checkpoint("last").state["step"]
    while True:
        step += 1
        Run.open(home).save_checkpoint("last", checkpoint(step))

steps = []
chance = random.Random(1)
for _ in range(40):
    child = in_child(save_for_ever)
    time.sleep(chance.uniform(0.0, 0.04))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = Run.open(home).load_checkpoint("last")
    steps.append(found.state["step"])
    assert set(found.weights["values"].tolist()) == {steps[-1]}, found
    assert set(found.optimizer["state"][0]["exp_avg"].tolist()) == {steps[-1]}, found
assert steps == sorted(steps), steps
print(steps[-1])
"""


@posix
def test_saves_killed_at_any_moment_keep_weights_and_optimizer_together(
    run: Run, make_checkpoint: MakeCheckpoint
) -> None:
    run.save_checkpoint("last", make_checkpoint(1))
    writer = start(SAVE_AND_BE_KILLED, run.path)
    output = writer.communicate()[0]
    assert writer.returncode == 0
    assert int(output) > 1, "no save ended before its process was killed"


SAVE_UNTIL_TOLD = """
run = Run.open(sys.argv[1])
step = 1
while not Path(sys.argv[2]).exists():
    step += 1
    run.save_checkpoint("last", checkpoint(step))
"""


def test_a_run_is_read_while_another_process_writes_it(
    run: Run, make_checkpoint: MakeCheckpoint, step_of: StepOf, tmp_path: Path
) -> None:
    run.save_checkpoint("last", make_checkpoint(1))
    writer = start(SAVE_UNTIL_TOLD, run.path, tmp_path / "enough")
    steps = [1]
    try:
        while len(set(steps)) < 15 and writer.poll() is None:
            assert run.has_checkpoint("last")
            steps.append(step_of(Run.open(run.path).load_checkpoint("last")))
    finally:
        (tmp_path / "enough").touch()
        writer.communicate()
    assert writer.returncode == 0
    assert steps == sorted(steps)


def test_a_full_disk_keeps_the_old_checkpoint(
    make_run: MakeRun, make_checkpoint: MakeCheckpoint, step_of: StepOf, small_disk: Path
) -> None:
    run = make_run(small_disk / "run")
    run.save_checkpoint("last", make_checkpoint(1))
    for size in (75_000, 140_000):  # of 4 bytes each: full in the optimizer's file, in the weights' file
        run.save_checkpoint("best", make_checkpoint(5, size=60_000))
        with pytest.raises(StorageError, match="free space") as caught:
            run.save_checkpoint("last", make_checkpoint(2, size=size))
        assert str(run.path / "last") in caught.value.wanted
        assert step_of(run.load_checkpoint("last")) == 1
        assert sorted(entry.name for entry in run.path.iterdir() if entry.is_dir()) == ["best", "last"]
        shutil.rmtree(run.path / "best")
    run.save_checkpoint("last", make_checkpoint(2))
    assert step_of(run.load_checkpoint("last")) == 2


def test_a_read_only_disk_is_read_but_not_written(
    make_run: MakeRun, make_checkpoint: MakeCheckpoint, step_of: StepOf, small_disk: Path
) -> None:
    run = make_run(small_disk / "run")
    run.save_checkpoint("last", make_checkpoint(1))
    (run.path / "last").rename(run.path / "last.old")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert step_of(Run.open(run.path).load_checkpoint("last")) == 1
    with pytest.raises(StorageError, match="that you may write"):
        run.save_checkpoint("last", make_checkpoint(2))
    assert step_of(Run.open(run.path).load_checkpoint("last")) == 1


@pytest.fixture
def short_files() -> Iterator[None]:
    """No file of this process may grow beyond 16 KiB: a disk that refuses, without being root."""
    resource = pytest.importorskip("resource", reason="limits on files are POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_quota_keeps_the_old_checkpoint(
    run: Run, make_checkpoint: MakeCheckpoint, step_of: StepOf, short_files: None
) -> None:
    run.save_checkpoint("last", make_checkpoint(1))
    with pytest.raises(StorageError, match="free space"):
        run.save_checkpoint("last", make_checkpoint(2, size=10_000))
    assert step_of(run.load_checkpoint("last")) == 1
    assert [entry.name for entry in run.path.iterdir() if entry.is_dir()] == ["last"]
