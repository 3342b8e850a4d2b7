"""How far imported models are from makemore's own.

    python benchmarks/makemore_import.py MAKEMORE NAMES CHECKPOINT…

MAKEMORE is an unchanged makemore.py, NAMES the list that its checkpoints (model.pt, with its default sizes)
were trained on. Prints the largest difference of logits on 1,000 names, in float32 and in float64, and
makemore's own rounding: the largest difference between its own logits in float32 and in float64.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from flashmore.data.batches import encode_items
from flashmore.generation.load import load_model
from flashmore.share.importing import import_model
from makemore_model import import_makemore

COMPARED = 1000


def theirs(module: Any, model: str, config: Any) -> Any:
    """makemore's module of a model."""
    if model in ("rnn", "gru"):
        return module.RNN(config, cell_type=model)
    names = {"transformer": "Transformer", "bigram": "Bigram", "mlp": "MLP", "bow": "BoW"}
    return getattr(module, names[model])(config)


def compare(module: Any, names: Path, checkpoint: Path) -> str:
    """One line about one checkpoint."""
    with TemporaryDirectory() as folder:
        run = import_model(checkpoint, names, Path(folder, "run"))
        ours: Any = load_model(run, "cpu")
        result = run.read_result()
    sizes = run.model
    config = module.ModelConfig(block_size=sizes.block_size, vocab_size=sizes.vocab_size)
    config.n_embd = config.n_embd2 = sizes.n_embd
    config.n_layer, config.n_head = sizes.n_layer, sizes.n_head
    other = theirs(module, sizes.model, config).eval()
    other.load_state_dict(torch.load(checkpoint, weights_only=True))
    ids = encode_items(run.split.train[:COMPARED], run.vocabulary, sizes.block_size, "cpu").ids.long()
    with torch.inference_mode():
        logits = other(ids)[0]
        single = float((logits - ours(ids)).abs().max())
        if sizes.model == "bow":  # whose average has a mask in float32
            other.context_block.cbow.forward = lambda x: x.cumsum(1) / torch.arange(1, x.size(1) + 1)[:, None]
        exact = other.double()(ids)[0]
        double = float((exact - ours.double()(ids)).abs().max())
    rounding = float((logits - exact).abs().max())
    loss = "" if result is None else f"test loss {result['test_loss']:.4f}, "
    largest = float(logits.abs().max())
    relative = f"({single / largest:.1e} of the largest)"
    return (
        f"{sizes.model}: {loss}logits up to {largest:.1f}, float32 {single:.1e} {relative}, "
        f"float64 {double:.1e}, makemore's own rounding {rounding:.1e}"
    )


def main() -> None:
    """Compare every checkpoint that is named."""
    if len(sys.argv) < 4:
        raise SystemExit(__doc__)
    script, names, *checkpoints = map(Path, sys.argv[1:])
    module = import_makemore(script)
    for checkpoint in checkpoints:
        print(compare(module, names, checkpoint))


if __name__ == "__main__":
    main()
