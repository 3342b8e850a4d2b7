"""A run is whole after a power failure at any moment, and with a disk that fails at any call."""

import errno
import os
import pickle
import shutil
from pathlib import Path
from shlex import split

import pytest
import torch
from safetensors.torch import load_file

from disk import Act, after_power_failures, is_safe, materialise
from flashmore.runs import Run
from flashmore.runs.checkpoint import step_of
from flashmore.runs.settings import is_run
from flashmore.training.result import result_of
from forks import Forks

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork")
NAMES = "\n".join(
    first + second for first in ("an", "be", "cor", "dal") for second in ("na", "lo", "mi", "ra")
)
TRAIN = split(
    "train names.txt --out runs/run --device cpu --dropout 0.1 --model mlp --n-embd 8 --batch-size 4 "
    "--log-interval 1 --speedups none --max-steps 6 --eval-interval 2"
)
PROGRAM = Path(__file__).with_name("disk.py")


def train(
    forks: Forks, folder: Path, *words: str, fail_at: int | str = "-", number: int = errno.EIO
) -> tuple[int, str, list[Act], int]:
    """The command of this file in a folder: exit code, stderr, what it did to the disk, and its calls."""
    (folder / "names.txt").write_text(NAMES)
    report = folder / "report"
    done = forks.run((PROGRAM, folder / "runs", report, fail_at, number, *TRAIN, *words), os.environ, folder)
    acts, calls = pickle.loads(report.read_bytes())
    return done.returncode, done.stderr, [Act(*act) for act in acts], calls


def of_each_step(forks: Forks, folder: Path) -> dict[int, dict[str, torch.Tensor]]:
    """The tensors of every checkpoint of the same training."""
    code, told, *_ = train(forks, folder, "--keep", "100")
    assert code == 0, told
    paths = (folder / "runs" / "run").glob("step-*")
    return {step_of(path.name) or 0: load_file(path) for path in paths}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in right)


def durable_step(acts: list[Act]) -> int | None:
    """The newest checkpoint that a power failure can no longer lose, if config.json is there too."""
    safe = [Path(act.other).name for n, act in enumerate(acts) if act.kind == "rename" and is_safe(n, acts)]
    steps = [step for name in safe if (step := step_of(name)) is not None]
    return max(steps) if "config.json" in safe else None


def test_every_state_that_a_power_failure_leaves_is_a_whole_checkpoint(
    forks: Forks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("whole", "recorded"):
        (tmp_path / name).mkdir()
    whole = of_each_step(forks, tmp_path / "whole")
    root = tmp_path / "recorded" / "runs"
    code, told, acts, _ = train(forks, tmp_path / "recorded")
    assert code == 0, told
    kinds = {act.kind for act in acts}
    assert kinds == {"create", "write", "sync", "rename", "unlink", "mkdir", "truncate"}
    states = runs = 0
    for count, lost, files in after_power_failures(tmp_path / "recorded" / "runs", acts):
        case = f"after {count} of {len(acts)} acts ({acts[count - 1].kind} {acts[count - 1].name}), {lost}"
        here = tmp_path / "state"
        materialise(files, root, here)
        states += 1
        safe = durable_step(acts[:count])
        if not is_run(here / "run"):
            assert safe is None, case
        else:
            run = Run.open(here / "run")
            state = run.load_state()
            assert same(load_file(run.checkpoint(state.step)), whole[state.step]), case
            assert safe is None or state.step >= safe, case
            run.load_weights()
            run.read_metrics()
            result_of(run)
            runs += 1
        assert capsys.readouterr().err == "", case  # which would say that a checkpoint is damaged
        shutil.rmtree(here)
    assert states > 200
    assert runs > 100


def fail_at_calls(forks: Forks, tmp_path: Path, every: int, first: int = 0) -> int:
    """Let single calls fail, and go on with the same command afterwards; returns how many were survived."""
    (tmp_path / "whole").mkdir()
    whole = of_each_step(forks, tmp_path / "whole")
    (tmp_path / "counted").mkdir()
    *_, calls = train(forks, tmp_path / "counted")
    names = {path.name for path in (tmp_path / "counted" / "runs" / "run").iterdir()}
    others = {name for name in names if step_of(name) is None}
    lines = (tmp_path / "counted" / "runs" / "run" / "metrics.jsonl").read_text().count("\n")
    survived = 0
    for number in range(first, calls, every):
        for error, policy in zip((errno.EIO, errno.ENOSPC), ("continue", "stop"), strict=True):
            folder = tmp_path / f"{number} {policy}"
            folder.mkdir()
            words = ("--on-save-error", policy)
            code, told, *_ = train(forks, folder, *words, fail_at=number, number=error)
            case = f"call {number} of {calls}, {policy}: exit {code}, {told}"
            assert "Traceback" not in told, case
            assert (code, told.count("wanted: ")) in ((0, 0), (1, 1)), case
            if "cannot be saved" in told:
                assert (code, policy) == (0, "continue"), case
                assert "is saved again" in told, case
                survived += 1
            run = folder / "runs" / "run"
            if (run / "config.json").exists():
                opened = Run.open(run)
                step = opened.load_state().step
                assert same(load_file(opened.checkpoint(step)), whole[step]), case
            code, told, *_ = train(forks, folder, *words)
            assert code == 0, f"{case}; then {told}"
            left = {path.name for path in run.iterdir()}  # perhaps without a checkpoint that was not saved
            assert max(filter(step_of, left)) == max(filter(step_of, names)), case
            assert {name for name in left if step_of(name) is None} == others, case
            assert all(same(load_file(path), whole[step_of(path.name) or 0]) for path in run.glob("step-*"))
            assert (run / "metrics.jsonl").read_text().count("\n") == lines, case
            shutil.rmtree(folder)
    return survived


def test_some_calls_that_fail_cost_nothing(forks: Forks, tmp_path: Path) -> None:
    assert fail_at_calls(forks, tmp_path, every=37, first=5) > 0


@pytest.mark.faults
def test_every_call_that_fails_costs_nothing(forks: Forks, tmp_path: Path) -> None:
    assert fail_at_calls(forks, tmp_path, every=1) > 10
