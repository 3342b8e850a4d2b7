"""flashmore: small character models, as fast as PyTorch's documentation allows.

The public names are loaded on first use, so that `import flashmore` does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashmore.backends.contract import attention, describe_call
    from flashmore.backends.explain import explain
    from flashmore.config import TrainConfig
    from flashmore.errors import FlashmoreError
    from flashmore.generation.options import GenerateOptions
    from flashmore.generation.sample import generate
    from flashmore.generation.score import score
    from flashmore.rules.call import AttentionCall
    from flashmore.runs import Run
    from flashmore.training.loop import resume, train
    from flashmore.upgrade.find import find_sites

__all__ = [
    "AttentionCall",
    "FlashmoreError",
    "GenerateOptions",
    "Run",
    "TrainConfig",
    "attention",
    "describe_call",
    "explain",
    "find_sites",
    "generate",
    "resume",
    "score",
    "train",
]

_HOMES = {
    "FlashmoreError": "flashmore.errors",
    "GenerateOptions": "flashmore.generation.options",
    "TrainConfig": "flashmore.config",
    "Run": "flashmore.runs",
    "AttentionCall": "flashmore.rules.call",
    "attention": "flashmore.backends.contract",
    "describe_call": "flashmore.backends.contract",
    "explain": "flashmore.backends.explain",
    "find_sites": "flashmore.upgrade.find",
    "generate": "flashmore.generation.sample",
    "resume": "flashmore.training.loop",
    "score": "flashmore.generation.score",
    "train": "flashmore.training.loop",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'flashmore' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
