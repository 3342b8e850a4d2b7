import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmore.errors import RunError
from flashmore.runs import Checkpoint, Run, records

MakeRun = Callable[[Path], Run]
MakeCheckpoint = Callable[..., Checkpoint]
StepOf = Callable[[Checkpoint], int]

FILES = ("weights.safetensors", "optimizer.pt", "state.json")


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
        "tied": parameter,
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
@settings(deadline=None)
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
@settings(deadline=None)
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
