"""`flashmore import`: a model of another project as a run."""

from pathlib import Path

from tyro.conf import Positional

from flashmore.cli.parse import command, require_writable
from flashmore.terminal import say


@command("import")
def main(source: Positional[Path], *, data: Path, out: Path, n_head: int | None = None) -> int:
    """Turn makemore's model.pt, nanoGPT's ckpt.pt, or a Hugging Face GPT-2 into a run.

    No code in these files is executed. An imported run supports everything except resuming training.

    Args:
        source: The checkpoint, or the folder of a Hugging Face model.
        data: What the model was trained on: the names, the text, or nanoGPT's `.bin` file.
        out: New or empty folder for the run.
        n_head: Attention heads of a makemore Transformer, which its checkpoint does not store. If omitted, 4.
    """
    require_writable("--out", out, folder=True)

    from flashmore.share.importing import import_model

    run = import_model(source, data, out, n_head=n_head)
    result = run.read_result() or {}
    losses = [loss for name in ("test_loss", "val_loss") if (loss := result.get(name)) is not None]
    measured = f"; held-out loss {losses[0]:.4f} nats" if losses else ""
    say(f"imported the model {run.model.model} into {out}{measured}")
    return 0
