"""makemore's Transformer from the user's own makemore.py, with our weights."""

import importlib.util
from pathlib import Path
from typing import Any

from torch import nn

from flashmore.models.config import ModelConfig

RENAMED = (("blocks.", "h."), (".attention.", ".attn."))


def import_makemore(script: Path) -> Any:
    """The user's makemore.py as a module; nothing in it runs but definitions."""
    spec = importlib.util.spec_from_file_location("makemore", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def their_name(name: str) -> str:
    """What makemore calls one of our parameters."""
    for old, new in RENAMED:
        name = name.replace(old, new)
    return name if name.startswith("lm_head") else f"transformer.{name}"


def their_model(module: Any, ours: nn.Module, sizes: ModelConfig) -> Any:
    """makemore's Transformer of these sizes with our weights."""
    config = module.ModelConfig(
        block_size=sizes.block_size,
        vocab_size=sizes.vocab_size,
        n_layer=sizes.n_layer,
        n_embd=sizes.n_embd,
        n_head=sizes.n_head,
    )
    model = module.Transformer(config).eval()
    weights = {their_name(name): value.detach().clone() for name, value in ours.state_dict().items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    masks = [name for name in missing if name.endswith("attn.bias")]  # their causal mask is a buffer
    assert missing == masks, missing
    assert not unexpected, unexpected
    return model
