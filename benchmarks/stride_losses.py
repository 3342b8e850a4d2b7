"""What `flashmore generate --stride` costs: the loss on the true text with what each stride keeps of it.

    python benchmarks/stride_losses.py RUN… [--characters 8000]

RUN is a run on one long text. Each of the first characters of its validation part that have a whole context
before them is predicted from the last 1, 2, … T characters, T being the context. With a stride of N, a
character beyond the context follows the last T - N + 1 to T characters, each equally often; so its loss is
the mean over these lengths. The interval of the difference from a stride of 1 is that of the means of 100
characters each.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import tyro
from tyro.conf import Positional

from comparison import Record, answer
from flashmore.errors import UsageError
from flashmore.generation.load import load_model
from flashmore.models.onednn import pack
from flashmore.runs import Run

TOGETHER = 16
"""Windows in a batch."""
BLOCK = 100
"""Characters of which each mean is one sample of the interval."""


@dataclass(frozen=True)
class Options:
    """Compare the losses of strides."""

    runs: Positional[tuple[Path, ...]]
    """Folders of runs on one long text."""
    characters: int = 8000
    """How many characters are predicted."""
    threads: int = 2
    """CPU threads."""
    json: bool = False
    """Print the result to stdout as JSON, and nothing else."""


def main() -> int:
    """Run the comparison."""
    options = tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,))
    return answer(lambda: compare(options), report, as_json=options.json)


def compare(options: Options) -> dict[str, Any]:
    """The losses of every run."""
    torch.set_num_threads(options.threads)
    runs = [strides(Run.open(path), path, options.characters) for path in options.runs]
    return {"what": "stride-losses", "runs": runs}


def strides(run: Run, path: Path, characters: int) -> dict[str, Any]:
    """The mean loss of each stride, and its difference from that of a stride of 1."""
    if run.text is None:
        raise UsageError("a run on one long text", str(path), "one of `flashmore train --mode text`")
    by_length = losses(run, path, characters)
    T = by_length.shape[1]
    found = []
    for stride in sorted({1, *(T // part for part in (32, 8, 4, 2, 1))} - {0}):
        kept = by_length[:, T - stride :].mean(1)
        differences = kept - by_length[:, -1]
        means = differences[: len(kept) // BLOCK * BLOCK].reshape(-1, BLOCK).mean(1)
        margin = 1.96 * means.std(ddof=1) / len(means) ** 0.5
        found.append(
            {
                "stride": stride,
                "loss": float(kept.mean()),
                "difference": float(differences.mean()),
                "margin": float(margin),
            }
        )
    return {"run": path.name, "context": T, "characters": len(by_length), "strides": found}


@torch.inference_mode()
def losses(run: Run, path: Path, characters: int) -> npt.NDArray[np.float32]:
    """(characters, T): the loss of each from the last 1 to T characters before it."""
    assert run.text is not None
    T = run.model.block_size
    begin, stop = run.text.parts.validation
    ids = torch.from_numpy(run.text.ids(path, run.vocabulary)[begin:stop].astype(np.int64))
    windows = ids.unfold(0, T + 1, 1)[: characters + T - 1]  # (W, T + 1)
    model = pack(load_model(run, "cpu"))
    rows = []
    for part in windows.chunk(-(-len(windows) // TOGETHER)):
        logits = model(part[:, :-1]).transpose(1, 2)  # (B, V, T)
        rows.append(F.cross_entropy(logits, part[:, 1:], reduction="none"))
    of_windows = torch.cat(rows).numpy()  # (W, T)
    # Window w predicts character w + L from L characters; each one counts from the first with T before it.
    count = len(of_windows) - T + 1
    return np.stack([of_windows[T - L :][:count, L - 1] for L in range(1, T + 1)], axis=1)


def report(record: Record) -> None:
    """Print the figures for people."""
    for run in record["runs"]:
        print(f"{run['run']}: context {run['context']}, {run['characters']:,} characters")
        for row in run["strides"]:
            difference = f"{row['difference']:+.4f} ± {row['margin']:.4f}"
            print(f"  stride {row['stride']:>4}  loss {row['loss']:.4f}  against stride 1 {difference}")


if __name__ == "__main__":
    sys.exit(main())
