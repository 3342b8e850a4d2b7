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

from flashmore.data.batches import encode_items
from flashmore.training.batch import Batch
from flashmore.training.graph import FlatStep
from flashmore.training.plan import settle_speed
from flashmore.training.recipe import recipe_for
from flashmore.training.setting import settle
from flashmore.training.trainer import Trainer
from makemore_model import import_makemore, their_model, their_name


def main() -> None:
    """Compare the first batch's gradients."""
    script, names = Path(sys.argv[1]), Path(sys.argv[2])
    recipe = replace(recipe_for("transformer", "makemore"), file=names, split="makemore", device="cpu")
    recipe = replace(recipe, speedups=("exact",))
    setting = settle(recipe)
    data = encode_items(setting.split.train, setting.vocabulary, setting.config.block_size, setting.device)
    plan = settle_speed(recipe, setting.config, setting.device, data)
    trainer = plan.trainer(data)
    step = trainer.step
    assert isinstance(step, FlatStep), plan.notes
    theirs = their_model(import_makemore(script), trainer.model, plan.config)
    # The same names as rows: what makemore is given.
    rows = Trainer(plan.recipe, plan.config, data, plan.device).batch(0)
    expected = their_gradients(theirs, rows)
    trainer.advance()
    ours = step.views(step.state_dict()["mean"] / (1 - recipe.beta1))
    worst = {}
    for name, gradient in ours.items():
        theirs_too = expected[their_name(name)]
        worst[name] = float((gradient - theirs_too).abs().max() / theirs_too.abs().max())
    tensor = max(worst, key=lambda name: worst[name])
    document = {"worst": worst[tensor], "tensor": tensor, "tensors": len(worst)}
    print(json.dumps(document | {"speedups": plan.speedups.names}))


def their_gradients(model: Any, batch: Batch) -> dict[str, Tensor]:
    """By makemore's own forward, loss and backward; its loss ignores -1 as ours does."""
    model.train()
    _, loss = model(batch.ids, batch.targets)
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


if __name__ == "__main__":
    main()
