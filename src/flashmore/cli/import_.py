"""`flashmore import`: a model of another project as a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from flashmore.cli.parse import parse, require_writable
from flashmore.terminal import say


@dataclass(frozen=True)
class Import:
    """Turn makemore's model.pt, nanoGPT's ckpt.pt, or a Hugging Face GPT-2 into a run.

    No code in these files is executed. The run can do everything but resume training.
    """

    source: Positional[Path]
    """The checkpoint, or the folder of a Hugging Face model."""
    data: Path
    """What the model was trained on: the names, the text, or nanoGPT's `.bin` file."""
    out: Path
    """New or empty folder for the run."""
    n_head: int | None = None
    """Attention heads of a Transformer of makemore, whose checkpoint does not contain them. If omitted, 4."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore import`."""
    command = parse(Import, "import", argv)
    require_writable("--out", command.out, folder=True)

    from flashmore.share.importing import import_model

    run = import_model(command.source, command.data, command.out, n_head=command.n_head)
    say(f"imported a {run.model.model} into {command.out}")
    return 0
