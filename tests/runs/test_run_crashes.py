import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flashmore.runs import Checkpoint, Run

MakeRun = Callable[[Path], Run]
MakeCheckpoint = Callable[..., Checkpoint]
StepOf = Callable[[Checkpoint], int]

FILES = ("weights.safetensors", "optimizer.pt", "state.json")

posix = pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")


@pytest.fixture
def run(make_run: MakeRun, tmp_path: Path) -> Run:
    return make_run(tmp_path / "run")


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
        os.write(saved, b"!")

steps = []
chance = random.Random(1)
for _ in range(40):
    told, saved = os.pipe()
    child = in_child(save_for_ever)
    os.read(told, 1)  # one save at least
    time.sleep(chance.uniform(0.0, 0.04))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(told), os.close(saved)
    found = Run.open(home).load_checkpoint("last")
    steps.append(found.state["step"])
    assert set(found.weights["values"].tolist()) == {steps[-1]}, found
    assert set(found.optimizer["state"][0]["exp_avg"].tolist()) == {steps[-1]}, found
assert steps == sorted(set(steps)), steps
"""


@posix
def test_saves_killed_at_any_moment_keep_weights_and_optimizer_together(
    run: Run, make_checkpoint: MakeCheckpoint
) -> None:
    run.save_checkpoint("last", make_checkpoint(1))
    writer = start(SAVE_AND_BE_KILLED, run.path)
    writer.communicate()
    assert writer.returncode == 0


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
