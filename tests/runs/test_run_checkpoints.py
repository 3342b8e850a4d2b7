import errno
import json
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from io import FileIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as serialize

from flashmore.errors import RunError
from flashmore.models.registry import layout
from flashmore.runs import Checkpoint, LossScale, Run, State, checkpoint, records
from flashmore.runs.checkpoint import Layout

MakeRun = Callable[..., Run]
MakeCheckpoint = Callable[..., Checkpoint]
StepOf = Callable[[Run], int]
OPTIMIZER: Layout = {"exp_avg": ((4,), torch.float32)}


@pytest.fixture(scope="module")
def module_run(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("module") / "run")


def header_of(path: Path) -> dict[str, object]:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size])["__metadata__"]
    header: dict[str, object] = json.loads(metadata["checkpoint"])
    return header


def seal_again(path: Path, tensors: dict[str, torch.Tensor], **changes: object) -> None:
    """Write a checkpoint with other content and the right checksums, as somebody who means harm would."""
    from flashmore.runs.checkpoint import _digest

    header = header_of(path) | changes
    del header["sha256"]
    for group in ("weights", "optimizer"):
        own = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(group)}
        header[group] = _digest(own)
    sealed = records.encode(records.seal(header), indent=None).decode()
    path.write_bytes(serialize(tensors, {"checkpoint": sealed}))


def tensors_of(run: Run) -> dict[str, torch.Tensor]:
    loaded = run.load_checkpoint(OPTIMIZER)
    weights = {f"weights.{name}": value for name, value in loaded.weights.items()}
    return weights | {f"optimizer.{name}": value for name, value in loaded.optimizer.items()}


def test_whole_tensors_are_made_one_by_one(make_checkpoint: MakeCheckpoint) -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    def whole(value: torch.Tensor) -> torch.Tensor:
        assert not any(each() is not None for each in made)
        copied = value.clone()
        made.append(weakref.ref(copied))
        return copied

    saved = make_checkpoint(1)
    checkpoint.Image().take(saved.weights, saved.optimizer, whole)
    assert len(made) == len(saved.weights) + len(saved.optimizer) > 2


def test_a_checkpoint_comes_back_as_it_was(run: Run, make_checkpoint: MakeCheckpoint) -> None:
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: torch.rand(v.shape, generator=generator) for name, v in make_checkpoint(1).weights.items()
    }
    optimizer = {"view": torch.rand(3, 2, generator=generator).t(), "rng": torch.get_rng_state()}
    state = State(7, 20, 0.1 + 0.2, 7, 1.5, LossScale(65536.0, 3))
    run.save_checkpoint(Checkpoint(weights, optimizer, state))
    loaded = Run.open(run.path).load_checkpoint(
        {"view": ((2, 3), torch.float32), "rng": ((len(optimizer["rng"]),), torch.uint8)}
    )
    assert loaded.state == state
    for before, after in ((weights, loaded.weights), (optimizer, loaded.optimizer)):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("folder", [None, "/dev/shm"], ids=["disk", "memory"])
def test_a_checkpoint_of_many_blocks_comes_back(
    folder: str | None, make_run: MakeRun, make_checkpoint: MakeCheckpoint, step_of: StepOf, tmp_path: Path
) -> None:
    if folder is not None and not Path(folder).is_dir():
        pytest.skip(f"there is no {folder} here")
    with TemporaryDirectory(dir=folder) as name:  # a file system in memory may refuse direct writing
        run = make_run(Path(name) / "run", channels=1001)
        run.save_checkpoint(make_checkpoint(7, channels=1001))
        assert run.checkpoint(7).stat().st_size % 4096
        assert run.checkpoint(7).stat().st_size > 2**21
        assert step_of(run) == 7


def test_the_optimizer_is_not_read_for_its_weights(run: Run) -> None:
    path = run.checkpoint(0)
    tensors = tensors_of(run)
    seal_again(path, tensors | {"optimizer.exp_avg": torch.zeros(2**20)})
    assert run.load_weights().keys() == layout(run.model).keys()
    with pytest.raises(RunError, match=r"exp_avg of shape \(1048576,\)"):
        run.load_checkpoint(OPTIMIZER)


@pytest.fixture
def save(run: Run, make_checkpoint: MakeCheckpoint) -> Callable[..., None]:
    """Saves a checkpoint whose tensors hold its step."""

    def saved(step: int, best_step: int | None = None, keep: int = 2) -> None:
        made = make_checkpoint(step)
        best_loss = None if best_step is None else 1.0
        state = replace(made.state, best_step=best_step, best_loss=best_loss)
        run.save_checkpoint(replace(made, state=state), keep)

    return saved


def value_of(run: Run) -> float:
    return next(iter(run.load_weights().values())).flatten()[0].item()


@pytest.mark.parametrize(("keep", "kept"), [(1, [9]), (2, [5, 8, 9]), (3, [5, 7, 8, 9]), (20, [*range(10)])])
def test_the_newest_checkpoints_are_kept_with_their_best(
    run: Run, save: Callable[..., None], keep: int, kept: list[int]
) -> None:
    saved = [(1, None), (2, 2), (3, 3), (4, 3), (5, 5), (6, 5), (7, 5), (8, 5), (9, 9)]
    for step, best_step in saved:
        save(step, best_step, keep)
    assert run.steps == kept
    assert value_of(run) == 9


def test_no_checkpoint_loses_its_best_weights_before_it_is_removed(
    run: Run, save: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink, removed = Path.unlink, list[str]()

    def watched(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        removed.append(path.name)
        for step in run.steps:
            assert checkpoint.load(run.checkpoint(step), run.digest).state.best_step in (None, *run.steps)

    for step, best_step in ((3, 3), (6, 3)):
        save(step, best_step)
    monkeypatch.setattr(Path, "unlink", watched)
    save(9, 9, keep=1)
    assert sorted(removed) == ["step-000000003.safetensors", "step-000000006.safetensors"]


def test_the_last_checkpoint_that_has_its_best_weights_is_kept(run: Run, save: Callable[..., None]) -> None:
    for step, best_step in ((2, 2), (4, 2), (12, 8), (16, 8), (20, 8)):
        save(step, best_step)
    assert run.steps == [2, 4, 12, 16, 20]
    assert value_of(run) == 2
    save(24, 24)
    save(28, 24)
    assert run.steps == [24, 28]


def test_without_validation_the_newest_weights_are_used(run: Run, save: Callable[..., None]) -> None:
    for step in (1, 2, 3):
        save(step)
        assert value_of(run) == step
    assert run.steps == [2, 3]


def test_the_checkpoint_before_a_damaged_one_is_used_and_told(
    run: Run, save: Callable[..., None], step_of: StepOf, capsys: pytest.CaptureFixture[str]
) -> None:
    save(3, 3)
    save(8, 3)
    assert step_of(run) == 8
    assert capsys.readouterr().err == ""
    flip(run.checkpoint(8))
    for opened in (run, Run.open(run.path)):
        assert step_of(opened) == 3
        assert opened.load_state().best_step == 3
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert "step-000000008.safetensors: " in told
        assert told.endswith("using the checkpoint of step 3\n")
    save(5, 3)  # as training that goes on from there does
    assert run.steps == [3, 5]
    assert step_of(run) == 5


def test_a_damaged_best_checkpoint_is_worth_the_one_before(
    run: Run, save: Callable[..., None], step_of: StepOf
) -> None:
    for step, best_step in ((3, 3), (6, 6), (8, 6)):
        save(step, best_step, keep=3)
    flip(run.checkpoint(6))
    assert value_of(run) == 3
    assert step_of(run) == 3


def test_a_checkpoint_that_the_disk_cannot_read_is_damaged(
    run: Run, save: Callable[..., None], step_of: StepOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(3)
    save(8)

    class BadSector(FileIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 8:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(-1 if size is None else min(size, 16)) or b""

    def opened(path: Path) -> FileIO:
        return BadSector(path) if path == run.checkpoint(8) else FileIO(path)

    monkeypatch.setattr("flashmore.runs.checkpoint.open_regular", opened)
    assert step_of(run) == 3


def test_training_goes_on_without_lost_best_weights_and_nothing_else_does(
    run: Run, save: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    save(3, 3)
    save(8, 3)
    save(9, 3)
    run.checkpoint(3).unlink()
    with pytest.raises(RunError, match="to go on without the best weights: flashmore train --resume"):
        run.load_weights()
    state = run.load_state(best_lost=True)
    assert (state.step, state.best_step, state.best_loss) == (9, None, None)
    assert "without the best weights so far, which are lost" in capsys.readouterr().err


def test_with_every_checkpoint_damaged_each_is_named(run: Run, save: Callable[..., None]) -> None:
    save(4, 4)
    save(8, 4)
    for step in run.steps:
        flip(run.checkpoint(step))
    with pytest.raises(RunError) as caught:
        run.load_state(best_lost=True)
    assert all(f"step-{step:09}.safetensors: " in caught.value.found for step in (4, 8))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_checkpoint_of_another_run_is_refused(run: Run, make_run: MakeRun, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other")
    config = json.loads((other.path / "config.json").read_bytes())
    del config["sha256"]
    config["config"]["lr"] = 1.0
    (other.path / "config.json").write_bytes(records.encode(records.seal(config)))
    with pytest.raises(RunError, match="a checkpoint of another run"):
        Run.open(other.path).load_weights()
    assert run.load_weights()


def test_a_checkpoint_in_the_place_of_another_is_refused(run: Run, make_checkpoint: MakeCheckpoint) -> None:
    run.save_checkpoint(make_checkpoint(3))
    for step in run.steps:
        shutil.copy(run.checkpoint(3), run.checkpoint(5))
        run.checkpoint(step).unlink()
    with pytest.raises(RunError, match=r"step-000000005\.safetensors: the checkpoint of step 3"):
        run.load_weights()


def test_every_cut_is_found(run: Run) -> None:
    path = run.checkpoint(0)
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(RunError, match="step-000000000"):
            run.load_checkpoint(OPTIMIZER)
    path.unlink()
    with pytest.raises(RunError, match="no checkpoint"):
        run.load_checkpoint(OPTIMIZER)


@settings(deadline=None)
@given(data=st.data())
def test_every_altered_bit_is_found(module_run: Run, data: st.DataObject) -> None:
    path = module_run.checkpoint(0)
    intact = path.read_bytes()
    altered = bytearray(intact)
    altered[data.draw(st.integers(0, len(intact) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(altered)
    try:
        with pytest.raises(RunError):
            module_run.load_checkpoint(OPTIMIZER)
    finally:
        path.write_bytes(intact)


@settings(deadline=None)
@given(
    junk=st.binary(max_size=200) | st.integers(0, 2**64 - 1).map(lambda n: n.to_bytes(8, "little") + b"{}")
)
def test_junk_is_refused(module_run: Run, junk: bytes) -> None:
    path = module_run.checkpoint(0)
    intact = path.read_bytes()
    path.write_bytes(junk)
    try:
        with pytest.raises(RunError):
            module_run.load_checkpoint(OPTIMIZER)
    finally:
        path.write_bytes(intact)


@pytest.mark.parametrize("prefix", ["weights.", "optimizer."])
@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.to(torch.bfloat16),
        lambda value: value.to(torch.float8_e4m3fn),
        lambda value: value.flatten()[:-1].clone(),
        lambda value: torch.zeros((0, *value.shape)),
        lambda value: value.unsqueeze(0).clone(),
        None,
    ],
)
def test_tensors_that_do_not_fit_are_refused_before_they_are_used(
    run: Run, prefix: str, change: Callable[[torch.Tensor], torch.Tensor] | None
) -> None:
    tensors = tensors_of(run)
    name = next(name for name in tensors if name.startswith(prefix))
    if change is None:
        tensors[prefix + "surprise"] = torch.zeros(1)
    else:
        tensors[name] = change(tensors[name])
    seal_again(run.checkpoint(0), tensors)
    with pytest.raises(RunError, match=name.removeprefix(prefix) if change else "surprise"):
        run.load_checkpoint(OPTIMIZER)


def test_tensors_with_a_wrong_checksum_are_refused(run: Run) -> None:
    path = run.checkpoint(0)
    tensors = tensors_of(run)
    header = records.encode(header_of(path), indent=None).decode()
    for name in tensors:
        path.write_bytes(serialize(tensors | {name: tensors[name] + 1}, {"checkpoint": header}))
        with pytest.raises(RunError, match="different from their checksum"):
            run.load_checkpoint(OPTIMIZER)


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1}, {"step": 1.5}, {"step": "1"}, {"step": True}, {"step": None}, {"step": 10**30},
        {"step": 10**6 + 1},
        {"max_steps": 10**16}, {"best_loss": "low"}, {"best_step": 2}, {"best_step": -1},
        {"train_seconds": -1}, {"train_seconds": []}, {"loss_scale": 1.0},
        {"loss_scale": {"scale": "x", "growth_tracker": 0}},
        {"loss_scale": {"scale": 0.0, "growth_tracker": 1}},
        {"loss_scale": {"scale": 1e39, "growth_tracker": 1}},
        {"loss_scale": {"scale": 2.0, "growth_tracker": 2**31}},
        {"best_loss": 1.0}, {"best_step": 0}, {"best_loss": 1.0, "best_step": 2},
        {"metrics_bytes": -1}, {"metrics_sha256": 3}, {"surprise": 1},
    ],
)  # fmt: skip
def test_a_sealed_state_with_wrong_values_is_refused(run: Run, change: dict[str, object]) -> None:
    path = run.checkpoint(0)
    state = header_of(path)["state"]
    assert isinstance(state, dict)
    seal_again(path, tensors_of(run), state=state | change)
    with pytest.raises(RunError, match=r"000\.safetensors: .*(step|state|surprise|64-bit)"):
        run.load_state()


def test_a_sealed_state_without_a_field_is_refused(run: Run) -> None:
    path = run.checkpoint(0)
    state = header_of(path)["state"]
    assert isinstance(state, dict)
    tensors = tensors_of(run)
    for name in state:
        seal_again(path, tensors, state={field: state[field] for field in state if field != name})
        with pytest.raises(RunError, match=name):
            run.load_state()


def test_a_state_that_json_does_not_know_loses_nothing(
    run: Run, make_checkpoint: MakeCheckpoint, step_of: StepOf
) -> None:
    made = make_checkpoint(1)
    with pytest.raises(ValueError, match="JSON"):
        run.save_checkpoint(replace(made, state=replace(made.state, best_loss=float("inf"), best_step=1)))
    assert step_of(run) == 0
    assert not list(run.path.glob("*.tmp"))
