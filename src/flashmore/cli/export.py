"""`flashmore export`: a run in the format of another library."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from flashmore.cli.parse import parse, require_writable
from flashmore.terminal import say, write_json


@dataclass(frozen=True)
class Export:
    """Export a run's best weights to the format of another library, and check them with that library.

    The folder gets a check.json with the largest difference between the library's logits and ours.
    """

    run: Positional[Path]
    """Folder or pack of the run."""
    to: Literal["safetensors", "hf", "onnx", "pt2", "gguf"]
    """safetensors: weights and config. hf: a GPT-2 with its tokenizer for Hugging Face's transformers. onnx:
    for ONNX Runtime. pt2: a program of torch.export. gguf: a GPT-2 for llama.cpp."""
    out: Path
    """New or empty folder to write."""
    opset: int | None = None
    """With --to onnx: version of ONNX's operators. If omitted, 18."""
    json: bool = False
    """Print the result of the check to stdout as JSON, and nothing else."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore export`."""
    command = parse(Export, "export", argv)
    require_writable("--out", command.out, folder=True)

    from flashmore.runs import Run
    from flashmore.share.export import export

    made = export(Run.open(command.run), command.to, command.out, opset=command.opset)
    if command.json:
        write_json(asdict(made))
        return 0
    same = "the same" if made.greedy_identical else "different"
    say(
        f"wrote {command.out}: {', '.join(made.files)}",
        f"checked with {made.checked_with}: on {made.sequences:,} sequences logits differ by at most "
        f"{made.largest_difference:.1e}; greedy names are {same}",
    )
    return 0
