"""Loads the model of a run for generation."""

from dataclasses import replace

import torch
from torch import nn

from flashmore.errors import ConfigError, RunError
from flashmore.models.ngram import NgramModel, best_ngram
from flashmore.models.registry import build
from flashmore.runs import Run


def load_model(run: Run, device: torch.device | str) -> nn.Module:
    """Load the best weights of a run, or else the last, in evaluation mode.

    The attention backend is always `sdpa`: the weights do not depend on the backend, and the one used in
    training may not run on this device or in float32.

    Raises:
        RunError: the run has no checkpoint, a damaged one, or one whose weights are not finite.
        ConfigError: the device cannot be used here.
    """
    weights = run.load_weights()
    bad = [name for name, value in weights.items() if not value.isfinite().all()]
    if bad:
        raise RunError(
            f"finite weights in {run.path}",
            f"NaN or infinities in {', '.join(bad)}: training diverged",
            "a run with a finite loss; try a lower --learning-rate",
        )
    model = untrained(run)
    run.restore(model, weights)
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        cause = str(error).partition("\n")[0]
        raise ConfigError(
            f"to compute on '{device}'", cause, "cpu, or another device of this machine"
        ) from None


def untrained(run: Run) -> nn.Module:
    """The model of a run with initial weights, and the attention that runs everywhere."""
    return build(replace(run.model, attention="sdpa"), seed=0)


def load_ngram(run: Run) -> NgramModel:
    """The n-gram model of the training items, of the order with the lowest validation loss.

    Raises:
        RunError: a run with weights, which n-grams do not support, or without a validation part.
    """
    split = run.split
    lacks = "weights" if split.weights is not None else "no validation part" if not split.validation else ""
    if lacks:
        wanted = "an unweighted run with a validation part for --ngram"
        valid = "a run without --weight, or another --split"
        raise RunError(wanted, f"{run.path}, a run with {lacks}", valid)
    ngrams, best = best_ngram(split.train, split.validation, run.vocabulary, run.model)
    return NgramModel(ngrams, best.order)
