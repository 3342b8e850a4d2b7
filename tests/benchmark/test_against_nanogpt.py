"""benchmarks/against_nanogpt.py reads the log of an unchanged checkout, and leaves the checkout as it was."""

import os
from pathlib import Path

import pytest
import torch

import against_nanogpt
from forks import Forks

SCRIPT = Path(against_nanogpt.__file__)
TRAIN = """
import sys
from model import SAID
assert open("configurator.py").read() == "# theirs\\n"
assert open("data/shakespeare_char/train.bin").read() == "THE TEXT"
assert "--device=cpu" in sys.argv and "--max_iters=2000" in sys.argv and SAID == 1
out = [word for word in sys.argv if word.startswith("--out_dir=")][0].partition("=")[2]
open(out, "w").write("a checkpoint")
for step in range(301):
    if step % 100 == 0:
        print(f"step {step}: train loss 1.5, val loss {4.0 - step / 100:.4f}")
        print("saving checkpoint")
    print(f"iter {step}: loss 2.0, time {5000 if step % 100 == 0 else 10 + step % 2}.00ms, mfu 0.10%")
"""

PREPARE = """
import os
import requests
here = os.path.dirname(__file__)
open(os.path.join(here, "train.bin"), "w").write(open(os.path.join(here, "input.txt")).read())
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that has the shape of a nanoGPT checkout and prints lines like its."""
    path = tmp_path / "nanoGPT"
    (path / "config").mkdir(parents=True)
    (path / "data" / "shakespeare_char").mkdir(parents=True)
    (path / "train.py").write_text(TRAIN)
    (path / "model.py").write_text("SAID = 1\n")
    (path / "configurator.py").write_text("# theirs\n")
    (path / "config" / "train_shakespeare_char.py").write_text("")
    (path / "data" / "shakespeare_char" / "prepare.py").write_text(PREPARE)
    return path


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_evaluations_do_not_count_and_the_checkout_stays_as_it_was(checkout: Path, tmp_path: Path) -> None:
    text = tmp_path / "input.txt"
    text.write_text("THE TEXT")
    before = everything(checkout)
    (tmp_path / "work").mkdir()
    options = against_nanogpt.Options(nanogpt=checkout)
    reached = against_nanogpt.nanogpt_to_target(options, tmp_path / "work", text)
    assert everything(checkout) == before
    # 300 iterations before the evaluation that says 1.0; of 297 timed ones 150 took 11 ms and 147 took 10.
    assert (reached.steps, reached.val_loss, reached.reached) == (300, 1.0, True)
    assert reached.seconds == pytest.approx((150 * 11 + 147 * 10 + 3 * 11) / 1000)


def test_a_side_that_never_gets_there_counts_with_its_whole_run() -> None:
    reached = against_nanogpt.until_target([10.0] * 50, [(0, 4.0), (25, 1.9), (50, 1.95)])
    assert (reached.seconds, reached.steps, reached.val_loss, reached.reached) == (0.5, 50, 1.9, False)
    assert against_nanogpt.until_target([10.0] * 50, [(0, 4.0), (25, 1.88)]).seconds == 0.25


@pytest.mark.parametrize(
    ("what", "found"),
    [
        ("shakespeare", "no such file"),
        pytest.param(
            "gpt2-124m",
            "sees none",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here"),
        ),
    ],
)
def test_what_cannot_run_here_gives_a_message_and_no_number(
    checkout: Path, what: str, found: str, forks: Forks
) -> None:
    done = forks.run((SCRIPT, "--nanogpt", checkout, "--what", what, "--json"), os.environ)
    assert (done.returncode, done.stdout) == (2, "")
    assert "wanted: " in done.stderr
    assert found in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path, forks: Forks) -> None:
    done = forks.run((SCRIPT, "--nanogpt", tmp_path), os.environ)
    assert done.returncode == 2
    assert "no train.py" in done.stderr
