from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flashmore.errors import RunError
from flashmore.runs import Checkpoint, Run
from flashmore.runs.metrics import MOST_LINES

LINE = b'{"step": 1, "loss": 2.0, "step_ms": 2.0}'
MakeCheckpoint = Callable[..., Checkpoint]


def steps(run: Run) -> list[int]:
    return [line["step"] for line in run.read_metrics()]


@pytest.fixture
def metrics(run: Run) -> Path:
    return run.path / "metrics.jsonl"


def log(run: Run, make_checkpoint: MakeCheckpoint, *steps: int, saved: int) -> None:
    """Log steps as a training process does, and save a checkpoint after one of them."""
    with run.log_metrics(run.load_state()) as lines:
        for step in steps:
            lines.append({"step": step, "loss": 1 / 3, "step_ms": 2.5})
            if step == saved:
                lines.sync()
                length, sha256 = lines.mark()
                made = make_checkpoint(step)
                state = replace(made.state, metrics_bytes=length, metrics_sha256=sha256)
                run.save_checkpoint(replace(made, state=state))


def test_lines_come_back_in_order(run: Run) -> None:
    assert run.read_metrics() == []
    lines = [
        {"step": 1, "loss": 3.3000000000000003, "step_ms": 2.5},
        {"step": 2, "loss": 3.1, "step_ms": 2.0, "val_loss": 3.2},
    ]
    with run.log_metrics(run.load_state()) as opened:
        for line in lines:
            opened.append(line)
    assert Run.open(run.path).read_metrics() == lines


def test_a_last_line_cut_anywhere_is_dropped(
    run: Run, metrics: Path, make_checkpoint: MakeCheckpoint
) -> None:
    log(run, make_checkpoint, 1, 2, saved=1)
    whole = metrics.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole)):
        metrics.write_bytes(whole[:length])
        assert steps(run) == [1]


def test_going_on_drops_what_was_logged_after_the_checkpoint(
    run: Run, metrics: Path, make_checkpoint: MakeCheckpoint
) -> None:
    log(run, make_checkpoint, 1, 2, 3, saved=2)
    with metrics.open("ab") as file:
        file.write(b'{"step": 4, "lo')
    assert steps(run) == [1, 2, 3]
    with run.log_metrics(run.load_state()) as lines:
        lines.append({"step": 3, "loss": 9.0, "step_ms": 2.5})
    assert [(line["step"], line["loss"]) for line in run.read_metrics()[1:]] == [(2, 1 / 3), (3, 9.0)]


@pytest.mark.parametrize("damage", ["shorter", "other", "gone"])
def test_a_log_that_is_not_the_checkpoints_is_refused_and_left_alone(
    run: Run, metrics: Path, make_checkpoint: MakeCheckpoint, damage: str
) -> None:
    log(run, make_checkpoint, 1, 2, saved=2)
    whole = metrics.read_bytes()
    if damage == "gone":
        metrics.unlink()
    else:
        metrics.write_bytes(whole[:-1] if damage == "shorter" else whole.replace(b"0.3", b"0.2"))
    before = metrics.read_bytes() if damage != "gone" else b""
    for read in (run.read_metrics, lambda: run.log_metrics(run.load_state())):
        with pytest.raises(RunError, match="at step 2") as caught:
            read()
        assert str(metrics) in caught.value.wanted
        assert (metrics.read_bytes() if metrics.exists() else b"") == before


@pytest.mark.parametrize(
    "line",
    [
        b"{]",
        b"3",
        b"\xff",
        b"",
        b'{"step": 2}',
        b'{"loss": 2.0, "step_ms": 2.0}',
        LINE.replace(b"1", b'"1"'),
        LINE.replace(b"1", b"true"),
        LINE.replace(b"1", b"9" * 400),
        LINE.replace(b"2.0", b"1e999"),
        LINE.replace(b"2.0", b"[" * 5000 + b"]" * 5000),
        LINE.replace(b"}", b', "val_loss": []}'),
        LINE.replace(b"}", b', "surprise": 1}'),
    ],
)
def test_lines_after_the_checkpoint_are_read_up_to_the_first_altered_one(
    run: Run, metrics: Path, line: bytes
) -> None:
    metrics.write_bytes(LINE + b"\n" + line + b"\n" + LINE + b"\n")
    assert steps(run) == [1]


@pytest.mark.parametrize("added", [1, 2])
def test_lines_added_after_the_checkpoint_are_of_later_steps(
    run: Run, metrics: Path, make_checkpoint: MakeCheckpoint, added: int
) -> None:
    log(run, make_checkpoint, 1, 2, 3, saved=2)
    with metrics.open("ab") as file:
        file.write(LINE.replace(b"1", b"%d" % added) + b"\n")
    with pytest.raises(RunError, match=r"step \d, added or altered"):
        run.read_metrics()


def test_more_lines_than_a_log_has_are_not_read(run: Run, metrics: Path) -> None:
    metrics.write_bytes(b"{}\n" * (MOST_LINES + 1))
    with pytest.raises(RunError, match="1,048,576 lines"):
        run.read_metrics()


def test_a_number_that_json_does_not_know_is_refused(run: Run) -> None:
    with run.log_metrics(run.load_state()) as lines, pytest.raises(ValueError, match="JSON"):
        lines.append({"step": 1, "loss": float("inf")})
    assert run.read_metrics() == []
