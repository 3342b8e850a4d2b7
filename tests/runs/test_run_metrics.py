from collections.abc import Callable
from pathlib import Path

import pytest

from flashmore.errors import RunError
from flashmore.runs import Run

MakeRun = Callable[[Path], Run]


@pytest.fixture
def run(make_run: MakeRun, tmp_path: Path) -> Run:
    return make_run(tmp_path / "run")


def steps(run: Run) -> list[int]:
    return [line["step"] for line in run.read_metrics()]


def test_lines_come_back_in_order(run: Run) -> None:
    assert run.read_metrics() == []
    lines = [{"step": 1, "loss": 3.3000000000000003}, {"step": 2, "loss": 3.1, "val_loss": 3.2}]
    for line in lines:
        run.append_metrics(line)
    assert Run.open(run.path).read_metrics() == lines
    assert (run.path / "metrics.jsonl").read_text().count("\n") == 2


def test_a_last_line_cut_anywhere_is_dropped(run: Run) -> None:
    run.append_metrics({"step": 1, "loss": 3.3})
    first = (run.path / "metrics.jsonl").read_bytes()
    run.append_metrics({"step": 2, "loss": 3.1})
    whole = (run.path / "metrics.jsonl").read_bytes()
    for length in range(len(first), len(whole)):
        (run.path / "metrics.jsonl").write_bytes(whole[:length])
        assert steps(run) == [1]


def test_appending_after_a_cut_line_does_not_join_the_two(run: Run) -> None:
    run.append_metrics({"step": 1, "loss": 3.3})
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "lo')
    run.append_metrics({"step": 2, "loss": 3.1})
    assert run.read_metrics() == [{"step": 1, "loss": 3.3}, {"step": 2, "loss": 3.1}]


def test_appending_to_nothing_but_a_cut_line(run: Run) -> None:
    (run.path / "metrics.jsonl").write_bytes(b'{"step": 1')
    run.append_metrics({"step": 1, "loss": 3.1})
    assert steps(run) == [1]


def test_truncating_removes_later_steps_and_a_cut_line(run: Run) -> None:
    run.truncate_metrics(5)
    assert not (run.path / "metrics.jsonl").exists()
    for step in (1, 2, 2, 3, 10):
        run.append_metrics({"step": step, "loss": 1 / 3})
    kept = (run.path / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:3]
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 1')
    run.truncate_metrics(2)
    assert (run.path / "metrics.jsonl").read_bytes() == b"".join(kept)
    assert sorted(entry.suffix for entry in run.path.iterdir()) == [".json", ".json", ".json", ".jsonl"]
    run.truncate_metrics(0)
    assert run.read_metrics() == []


@pytest.mark.parametrize(
    "line", [b"{]", b"3", b'{"loss": 2.0}', b'{"step": "2"}', b'{"step": true}', b"\xff", b""]
)
def test_an_altered_line_is_named(run: Run, line: bytes) -> None:
    run.append_metrics({"step": 1, "loss": 3.3})
    before = (run.path / "metrics.jsonl").read_bytes()
    (run.path / "metrics.jsonl").write_bytes(before + line + b"\n")
    with pytest.raises(RunError, match="line 2") as caught:
        run.read_metrics()
    assert str(run.path / "metrics.jsonl") in caught.value.wanted
    with pytest.raises(RunError, match="line 2"):
        run.truncate_metrics(0)
    assert (run.path / "metrics.jsonl").read_bytes() == before + line + b"\n"
