"""The gradients of our fast step beside makemore's own, from the same weights and names.

    python benchmarks/makemore_gradients.py PATH/makemore.py NAMES

It prints one JSON document: the largest difference of any tensor as a share of its largest gradient. Ours
come out of the graph that trains: after one update from zero, AdamW's mean is (1 - β₁) times them.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from flashmore.config import TrainConfig
from flashmore.training.corpus import read_corpus
from flashmore.training.dataset import Batch
from flashmore.training.resolve import resolve, resolve_device
from makemore_model import import_makemore, their_model, their_name


def main() -> None:
    """Compare the first batch's gradients."""
    script, names = Path(sys.argv[1]), Path(sys.argv[2])
    config = replace(TrainConfig(preset="makemore"), file=names, split="makemore", device="cpu")
    config = replace(config, speedups=("exact",))
    corpus = read_corpus(config)
    resolved = resolve(config, corpus, resolve_device(config.device))
    data = corpus.datasets(resolved.config, resolved.device).train
    trainer = resolved.trainer(data)
    theirs = their_model(import_makemore(script), trainer.model, resolved.model_config)
    # The same names as rows: what makemore is given.
    rows = data.batch(0)
    expected = their_gradients(theirs, rows)
    trainer.train_step()
    moments = trainer.step.state_dict()
    parameters = [name for name, _ in trainer.model.named_parameters()]
    ours = {name: moments[f"exp_avg.{name}"] / (1 - config.beta1) for name in parameters}
    worst = {}
    for name, gradient in ours.items():
        theirs_too = expected[their_name(name)]
        worst[name] = float((gradient - theirs_too).abs().max() / theirs_too.abs().max())
    tensor = max(worst, key=lambda name: worst[name])
    document = {"worst": worst[tensor], "tensor": tensor, "tensors": len(worst)}
    print(json.dumps(document | {"speedups": resolved.config.speedups}))


def their_gradients(model: Any, batch: Batch) -> dict[str, Tensor]:
    """By makemore's own forward, loss and backward; its loss ignores -1 as ours does."""
    model.train()
    _, loss = model(batch.ids, batch.targets)
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


if __name__ == "__main__":
    main()
