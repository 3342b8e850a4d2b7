"""`bench step` and `bench ablation` on several ranks: the gradients of one process, and every end."""

import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from flashmore.benchmark.check import check
from flashmore.benchmark.report.pages import html_page, report_on
from flashmore.cli.bench import show
from flashmore.errors import UsageError
from flashmore.measuring.result import read_record
from flashmore.measuring.statistics import ratio
from forks import Forks
from rank_jobs import NAMES, SMALL, Started, in_ranks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="starts and kills processes as Linux does")
SIZES = ("--n-layer", "1", "--n-embd", "16", "--n-head", "2", "--batch-size", "16", "--device", "cpu")
STEP = ("bench", "step", NAMES, *SIZES, "--variants", "flash", "flash")
ABLATION = ("bench", "ablation", NAMES, *SIZES, "--speedups", "resident")
SHARE = r"-?\d+\.\d %"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """The record of each benchmark, or its error."""
    folder = tmp_path_factory.mktemp("records")
    variants = {"variants": ["manual", "flash", "cudnn"]}
    step = {"bench": "step", "config": SMALL, "options": variants, "blocks": 2}
    added = SMALL | {"speedups": ["resident", "pack", "muon"], "grad_accum": 2}
    ablation = {"bench": "ablation", "config": added, "options": {}, "blocks": 2}
    jobs: dict[str, dict[str, Any]] = {
        "step": step | {"alike": str(folder / "step.alike")},
        "sharded": step | {"config": SMALL | {"parallel": "fsdp"}, "blocks": 1},
        "ablation": ablation,
        "wrong step": step | {"wrong": True, "config": SMALL | {"grad_clip": 0.0}},
        "wrong ablation": ablation | {"wrong": True, "config": added | {"grad_clip": 0.0}},
    }
    in_ranks(forks, 2, [job | {"out": str(folder / name)} for name, job in jobs.items()], folder)
    return folder


@pytest.mark.parametrize("kind", ["step", "ablation"])
def test_a_record_has_the_number_of_ranks_and_the_share_of_communication(folder: Path, kind: str) -> None:
    record = read_record(folder / kind)
    assert record["environment"]["ranks"] == 2
    assert record["command"][:5] == ["torchrun", "--nproc-per-node", "2", "-m", "flashmore"]
    assert record["batch"] == SMALL["batch_size"]
    for one in record["variants"]:
        if one["name"] == "cudnn":
            assert "communication" not in one
            continue
        found = one["communication"]
        expected = ratio(one["samples_ms"], found["samples_ms"])
        assert found["share"] == pytest.approx(1 - 1 / expected.value)
        assert found["low"] <= found["share"] <= found["high"] < 1
        assert len(found["samples_ms"]) == len(one["samples_ms"]) == 2


def test_only_the_copies_that_are_compared_exchange_nothing(folder: Path) -> None:
    """Weights stay the same on all ranks if these add up their gradients."""
    checked_timed_and_apart = [True, True, False]
    assert json.loads((folder / "step.alike").read_text()) == checked_timed_and_apart * 2


def test_a_sharded_model_is_timed_without_the_share(folder: Path) -> None:
    manual, flash, _ = read_record(folder / "sharded")["variants"]
    assert manual["ok"]
    assert flash["ok"]
    assert "communication" not in manual | flash


def test_variants_have_the_gradients_and_losses_of_one_process(folder: Path) -> None:
    records = [read_record(folder / name) for name in ("step", "sharded", "ablation")]
    checked = [one for record in records for one in record["variants"]]
    *exact, muon = [one for one in checked if one["name"] != "cudnn"]
    assert [one["name"] for one in exact] == ["manual", "flash"] * 2 + ["none", "resident", "pack"]
    assert all(0 < one["budget_used"] <= 1 for one in exact)
    assert (muon["name"], muon["ok"], muon["budget_used"]) == ("muon", True, None)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("wrong step", "manual: its error is too large for its precision"),
        ("wrong ablation", "none: its results differ from the plain loop's"),
    ],
)
def test_a_wrong_sum_over_the_ranks_gets_no_number(folder: Path, kind: str, says: str) -> None:
    message = (folder / kind).read_text(encoding="utf-8")
    assert message.startswith("wanted: at least one variant that can be timed")
    assert says in message


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("kind", ["step", "ablation"])
def test_terminal_and_report_show_them(
    folder: Path, kind: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    record = read_record(folder / kind)
    show(record)
    shown = capsys.readouterr().out
    assert "2 ranks of 1 thread" in shown
    names = [one["name"] for one in record["variants"] if one["ok"]]
    shares = ", ".join(rf"{name} {SHARE} \({SHARE} – {SHARE}\)" for name in names)
    assert re.search(f"Communication takes this share of a step.*: {shares}", shown.replace("\n", " "))
    page = html_page(report_on([(kind, record)]))
    assert "Communication takes this share" in page
    assert "processes of torchrun" in page


def test_a_record_of_another_number_of_ranks_cannot_be_compared(folder: Path) -> None:
    record = read_record(folder / "step")
    alone = json.loads(json.dumps(record))
    del alone["environment"]["ranks"]
    check(record, record, 3.0)
    with pytest.raises(UsageError, match="a different ranks"):
        check(record, alone, 3.0)


def test_a_signal_to_one_rank_ends_all_with_the_rounds_that_were_finished(
    tmp_path: Path, forks: Forks
) -> None:
    words = ("-m", "flashmore", *STEP, "--blocks", "1000", "--out", "record.json")
    started = Started(forks, tmp_path, words, words)
    try:
        for line in started.outputs[0]:
            if line == "timing in alternating blocks\n":
                break
        started.send(1, signal.SIGTERM)
        (code, shown), (other, silent) = started.ends()
    finally:
        started.stop()
    assert (code, other, silent) == (130, 0, "")
    assert "interrupted: the measurements so far are kept" in shown
    record = read_record(tmp_path / "record.json")
    assert not record["complete"]
    assert len({len(one["samples_ms"]) for one in record["variants"]}) == 1


FAILS = """
import sys
import torch
from flashmore.cli.process import entry
from flashmore.ranks import rank
from flashmore.training.trainer import Trainer

train_step = Trainer.train_step

def fails(self, most=1):
    if rank() == 1 and self.done == 3:
        raise torch.OutOfMemoryError("out of memory: tried to allocate 9 GiB")
    return train_step(self, most)

Trainer.train_step = fails
entry()
"""


@pytest.mark.parametrize(("words", "machines"), [(STEP, 1), (ABLATION, 2)], ids=["here", "elsewhere"])
def test_a_rank_that_fails_ends_all_with_its_message(
    tmp_path: Path, words: tuple[str, ...], machines: int, forks: Forks
) -> None:
    program = tmp_path / "fails.py"
    program.write_text(FAILS)
    each = (str(program), *words)
    started = Started(forks, tmp_path, each, each, machines=machines)
    try:
        (code, shown), (other, told) = started.ends()
    finally:
        started.stop()
    name = "flash" if words == STEP else "none"
    message = f"rank 1: wanted: a step of {name} on every rank\nrank 1:  found: torch says: out of memory"
    assert (code, other) == (1, 1)
    assert told.startswith(message)
    assert (message in shown) == (machines == 2)
    assert "another rank has ended" not in shown
    assert "Traceback" not in shown + told


@pytest.mark.parametrize("what", ["attention", "check"])
def test_the_other_benchmarks_are_refused(tmp_path: Path, what: str, forks: Forks) -> None:
    ((code, shown),) = Started(forks, tmp_path, ("-m", "flashmore", "bench", what), WORLD_SIZE="2").ends()
    assert code == 2
    assert f"wanted: a single process for flashmore bench {what}" in shown
    assert f"valid: flashmore bench {what} without torchrun" in shown
