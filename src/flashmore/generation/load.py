"""Loads the model of a run for generation and scoring."""

import dataclasses

import torch
from torch import Tensor, nn

from flashmore.errors import ConfigError, RunError
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
    _require_finite(run, weights)
    model = build(dataclasses.replace(run.model, attention="sdpa"), seed=0)
    run.restore(model, weights)
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        cause = str(error).partition("\n")[0]
        raise ConfigError(f"to compute on '{device}'", cause, "cpu, or the name of a device here") from None


def _require_finite(run: Run, weights: dict[str, Tensor]) -> None:
    bad = [name for name, value in weights.items() if not value.isfinite().all()]
    if bad:
        raise RunError(
            f"weights in {run.path} that are finite numbers",
            f"NaN or infinities in {', '.join(bad)}: training went astray",
            "a run whose loss stayed finite; a lower --learning-rate helps",
        )
