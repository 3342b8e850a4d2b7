"""How far imported models are from makemore's own.

    python benchmarks/makemore_import.py MAKEMORE NAMES CHECKPOINT…

MAKEMORE is an unchanged makemore.py, NAMES the list that its checkpoints (model.pt, with its default sizes)
were trained on. Prints the largest difference of logits on 1,000 names, in float32 and in float64, and two
measures of makemore's own rounding: the largest difference between its logits in float32 and in float64, and
between those of float32 with MKL's usual kernels and with those that are the same on every processor
(MKL_CBWR=COMPATIBLE).
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from flashmore.data.batches import encode_items
from flashmore.generation.load import load_model
from flashmore.share.importing import import_model
from makemore_model import import_makemore

COMPARED = 1000
PORTABLE = "--portable"
"""Marks the process of `other_order`."""


def theirs(module: Any, model: str, config: Any) -> Any:
    """makemore's module of a model."""
    if model in ("rnn", "gru"):
        return module.RNN(config, cell_type=model)
    names = {"transformer": "Transformer", "bigram": "Bigram", "mlp": "MLP", "bow": "BoW"}
    return getattr(module, names[model])(config)


def other_order(script: Path, checkpoint: Path, config: Any, model: str, ids: Tensor) -> Tensor:
    """makemore's logits (B, T, V) of ids (B, T) in a process with MKL's portable kernels."""
    with TemporaryDirectory() as folder:
        question, answer = Path(folder, "ids.pt"), Path(folder, "logits.pt")
        torch.save((vars(config), model, ids), question)
        command = map(str, (sys.executable, __file__, PORTABLE, script, checkpoint, question, answer))
        subprocess.run(list(command), check=True, env=os.environ | {"MKL_CBWR": "COMPATIBLE"})
        logits: Tensor = torch.load(answer, weights_only=True)
    return logits


def answer(script: str, checkpoint: str, question: str, answer: str) -> None:
    """What the process of `other_order` does."""
    module = import_makemore(Path(script))
    config, model, ids = torch.load(question, weights_only=True)
    other = theirs(module, model, module.ModelConfig(**config)).eval()
    other.load_state_dict(torch.load(checkpoint, weights_only=True))
    with torch.inference_mode():
        torch.save(other(ids)[0], answer)


def compare(script: Path, module: Any, names: Path, checkpoint: Path) -> str:
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
    portable = other_order(script, checkpoint, config, sizes.model, ids)
    itself = float((logits - portable).abs().max())
    loss = "" if result is None else f"test loss {result['test_loss']:.4f}, "
    largest = float(logits.abs().max())
    relative = f"({single / largest:.1e} of the largest)"
    return (
        f"{sizes.model}: {loss}logits up to {largest:.1f}, float32 {single:.1e} {relative}, "
        f"float64 {double:.1e}, makemore from its float64 {rounding:.1e}, "
        f"from itself with MKL's portable kernels {itself:.1e}"
    )


def main() -> None:
    """Compare every checkpoint that is named."""
    if sys.argv[1:2] == [PORTABLE]:
        answer(*sys.argv[2:])
        return
    if len(sys.argv) < 4:
        raise SystemExit(__doc__)
    script, names, *checkpoints = map(Path, sys.argv[1:])
    module = import_makemore(script)
    for checkpoint in checkpoints:
        print(compare(script, module, names, checkpoint))


if __name__ == "__main__":
    main()
