"""What the comparisons with makemore read from an unchanged checkout, and what they print."""

import json
import sys
from pathlib import Path

import pytest

from comparison import Record, answer, run_python
from flashmore.errors import UsageError
from makemore_options import Options
from makemore_time_to_loss import train_makemore

TRAIN = """
import sys
steps = int(sys.argv[sys.argv.index("--max-steps") + 1])
losses = {0: 3.3, 500: 2.1, 1000: 1.9, 1500: 1.95}
for step in range(steps):
    if step % 10 == 0:
        print(f"step {step} | loss 2.5000 | step time {20 + (step % 500 == 0):.2f}ms")
    if step in losses:
        print(f"step {step} train loss: 1.5 test loss: {losses[step]}")
"""
RECORD = {"to": "flashmore", "ratio": {"value": 3.5, "low": 3.0, "high": 4.0}}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that has the shape of a makemore checkout and prints lines like its."""
    (tmp_path / "makemore.py").write_text(TRAIN)
    (tmp_path / "names.txt").write_text("emma\n")
    return tmp_path


def test_seconds_are_those_up_to_the_best_test_loss(checkout: Path) -> None:
    found = train_makemore(Options(makemore=checkout, their_steps=1500), checkout)
    assert (found["test_loss"], found["steps"]) == (1.9, 1000)
    # Every tenth step stands for ten: steps 0, 500 and 1,000 took 21 ms, 98 others 20.
    assert found["seconds"] == pytest.approx(10 * (3 * 21 + 98 * 20) / 1000)


def test_a_missing_checkout_and_a_failing_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no makemore\.py in"):
        _ = Options(makemore=tmp_path).script
    (tmp_path / "breaks.py").write_text("raise SystemExit('it broke')")
    with pytest.raises(UsageError, match="exit 1: it broke"):
        run_python([str(tmp_path / "breaks.py")], 1, tmp_path)


def show(_: Record) -> None:
    sys.stdout.write("figures\n")


def test_an_answer_is_one_document_or_figures_with_the_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(lambda: RECORD, show, as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == RECORD
    assert answer(lambda: RECORD, show, as_json=False) == 0
    assert capsys.readouterr().out == "figures\nratio 3.50 (95 % 3.00 – 4.00); above 1: flashmore is faster\n"


def test_a_side_that_fails_its_check_has_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    def compare() -> dict[str, object]:
        raise UsageError("gradients within 1e-05", "0.5", "the same model")

    assert answer(compare, lambda _: None, as_json=True) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "gradients within" in printed.err
