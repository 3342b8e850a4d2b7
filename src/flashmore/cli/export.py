"""`flashmore export`: a run in the format of another library."""

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from flashmore.cli.parse import command, require_writable
from flashmore.terminal import say, write_json


@command("export")
def main(
    run: Positional[Path],
    *,
    to: Literal["safetensors", "hf", "onnx", "pt2", "gguf"],
    out: Path,
    json: bool = False,
) -> int:
    """Export a run's best weights to the format of another library, and check them with that library.

    The folder gets a check.json with the largest difference between the library's logits and flashmore's.

    Args:
        run: Folder or pack of the run.
        to: safetensors: weights and config. hf: a GPT-2 with its tokenizer for Hugging Face's transformers.
            onnx: for ONNX Runtime. pt2: a program of torch.export. gguf: a GPT-2 for llama.cpp.
        out: New or empty folder to write.
        json: Print the result of the check to stdout as JSON, and nothing else.
    """
    require_writable("--out", out, folder=True)

    from flashmore.runs import Run
    from flashmore.share.export import export

    made = export(Run.open(run), to, out)
    if json:
        write_json(asdict(made))
        return 0
    same = "the same" if made.greedy_identical else "different"
    say(
        f"wrote {out}: {', '.join(made.files)}",
        f"checked with {made.checked_with}: on {made.sequences:,} sequences logits differ by at most "
        f"{made.largest_difference:.1e}; greedy names are {same}",
    )
    return 0
