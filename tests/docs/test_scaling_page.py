"""docs/scaling.md has the figures of its record, and only options and files that exist."""

import json
import re
from pathlib import Path
from typing import Any

from flashmore.cli.estimate import Estimate
from flashmore.cli.main import main
from flashmore.config import TrainConfig
from scaling import figures

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
RECORD = json.loads(
    (ROOT / "benchmarks" / "results" / "epyc-2-cores-scaling.json").read_text(encoding="utf-8")
)
FOREIGN = {
    "--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-id", "--rdzv-endpoint", "--max-restarts",
    "--signals-to-handle", "--nodes", "--ntasks-per-node", "--gpus-per-node", "--time", "--signal",
    "--requeue", "--rounds", "--steps", "--record", "--gpus", "--out", "--resume",
}  # fmt: skip
"""Options of torchrun, SLURM and benchmarks/scaling.py, and of our commands outside of the config."""
PREDICTED = re.compile(
    r"^\| (gpt2-\w+) \| (\d+) \| (ddp|fsdp) \| ([\d.]+) \| ([\d.]+) "
    r"\| ([\d,]+) – ([\d,]+) \| ([\d.]+) – ([\d.]+) \|$",
    re.MULTILINE,
)


def test_the_figures_are_those_of_the_record() -> None:
    assert [figure for figure in figures(RECORD) if figure not in PAGE] == []


def test_the_predictions_are_those_of_the_command(capsys: Any) -> None:
    rows = PREDICTED.findall(PAGE)
    assert len(rows) == 6
    for preset, gpus, parallel, *shown in rows:
        words = ["--preset", preset, "--gpus", gpus, "--parallel", parallel, "--batch-size", "512"]
        words += ["--grad-accum", str(64 // int(gpus)), "--tflops", "400", "--latency-us", "10", "--json"]
        words += ["--bandwidth-gb-s", "360" if gpus == "8" else "40"]
        words += ["--activation-checkpointing"] if preset == "gpt2-1558m" else []
        ends = []
        for overlap in "01":
            assert main(["estimate", *words, "--overlap", overlap]) == 0
            ends.append(json.loads(capsys.readouterr().out))
        steps = [end["seconds"]["step"] for end in ends]
        faster = [int(gpus) * end["seconds"]["compute"] / end["seconds"]["step"] for end in ends]
        memory = sum(ends[0]["memory_bytes"].values()) / 1e9
        expected = [f"{memory:.1f}", f"{ends[0]['sent_bytes'] / 1e9:.2f}"]
        expected += [*(f"{1000 * step:,.0f}" for step in reversed(steps)), *(f"{x:.1f}" for x in faster)]
        assert shown == expected, (preset, gpus, parallel)


def test_every_option_on_the_page_is_there() -> None:
    told = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE))
    known = {
        f"--{name.replace('_', '-')}"
        for kind in (TrainConfig, Estimate)
        for name in kind.__dataclass_fields__
    }
    assert told <= known | FOREIGN


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
