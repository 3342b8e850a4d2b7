"""The models of makemore.py (https://github.com/karpathy/makemore), their weights under our names.

Shape letters: V vocabulary, N context, C channels, G gates.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from flashmore.errors import RunError
from flashmore.share.gpt2 import our_weights

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Found:
    """A model as another project stored it: the sizes it tells, and weights under our names."""

    sizes: dict[str, Any]
    weights: Weights
    is_text: bool
    tokens: Mapping[str, int] = field(default_factory=dict)
    """The ids of its tokens, where it stores them."""

    def in_float32(self) -> "Found":
        """The same, with weights of any floating-point dtype as float32."""
        if odd := [name for name, value in self.weights.items() if not value.is_floating_point()]:
            found = f"{self.weights[odd[0]].dtype} in {odd[0]}"
            raise RunError("weights of a floating-point dtype", found, "another checkpoint")
        return replace(self, weights={name: value.float() for name, value in self.weights.items()})


def _transformer(weights: Weights) -> Found:
    ours = our_weights(weights, transposed=False)
    layers = {name.split(".")[1] for name in ours if name.startswith("blocks.")}
    sizes = {
        "model": "transformer",
        "block_size": len(ours["wpe.weight"]),
        "vocab_size": len(ours["wte.weight"]),
        "n_layer": len(layers),
        "n_embd": ours["wte.weight"].size(1),
    }
    return Found(sizes, ours, is_text=False)


def _bigram(weights: Weights) -> Found:
    return Found({"model": "bigram", "vocab_size": len(weights["logits"])}, weights, is_text=False)


def _mlp(weights: Weights) -> Found:
    """makemore's window has the newest character first, ours the oldest."""
    embeddings, hidden = weights["wte.weight"], weights["mlp.0.weight"]
    C = _one_width(embeddings.size(1), len(hidden))
    reversed_window = hidden.view(len(hidden), -1, C).flip(1).flatten(1)  # (C, N, C) -> (C, N * C)
    ours = {
        "wte.weight": embeddings,
        "hidden.weight": reversed_window.contiguous(),
        "hidden.bias": weights["mlp.0.bias"],
        "lm_head.weight": weights["mlp.2.weight"],
        "lm_head.bias": weights["mlp.2.bias"],
    }
    sizes = {
        "model": "mlp",
        "vocab_size": len(embeddings) - 1,
        "block_size": hidden.size(1) // C,
        "n_embd": C,
    }
    return Found(sizes, ours, is_text=False)


def _bow(weights: Weights) -> Found:
    ours = {
        name.removeprefix("context_block.mlp."): value
        for name, value in weights.items()
        if not name.endswith("cbow.bias")  # their causal mask
    }
    C = _one_width(ours["wte.weight"].size(1), len(ours["c_fc.weight"]))
    sizes = {
        "model": "bow",
        "vocab_size": len(ours["wte.weight"]),
        "block_size": len(ours["wpe.weight"]),
        "n_embd": C,
    }
    return Found(sizes, ours, is_text=False)


def _gru(weights: Weights) -> Found:
    """Their update gate keeps what ours replaces: σ(−x) = 1 − σ(x)."""
    found = _recurrent("gru", weights, [("r", 1), ("z", -1), ("hbar", 1)])
    return replace(found, sizes=found.sizes | {"reset_after": False})


def _recurrent(model: str, weights: Weights, gates: list[tuple[str, int]]) -> Found:
    """makemore has one matrix for input and state together, and one bias."""
    C = _one_width(weights["wte.weight"].size(1), weights["start"].size(1))
    matrices = torch.cat([sign * weights[f"cell.xh_to_{gate}.weight"] for gate, sign in gates])  # (G * C, 2C)
    biases = torch.cat([sign * weights[f"cell.xh_to_{gate}.bias"] for gate, sign in gates])  # (G * C,)
    ours = {
        "start": weights["start"].unsqueeze(0),
        "wte.weight": weights["wte.weight"],
        "core.weight_ih_l0": matrices[:, :C].contiguous(),
        "core.weight_hh_l0": matrices[:, C:].contiguous(),
        "core.bias_ih_l0": biases,
        "core.bias_hh_l0": torch.zeros_like(biases),
        "lm_head.weight": weights["lm_head.weight"],
        "lm_head.bias": weights["lm_head.bias"],
    }
    sizes = {"model": model, "vocab_size": len(weights["wte.weight"]), "n_embd": C}
    return Found(sizes, ours, is_text=False)


def _one_width(embedding: int, hidden: int) -> int:
    if embedding != hidden:
        found = f"embeddings of width {embedding} and hidden layers of width {hidden}"
        raise RunError(
            "one width for embeddings and hidden layers", found, "a model with n_embd equal to n_embd2"
        )
    return embedding


MAKEMORE_MODELS: dict[str, Callable[[Weights], Found]] = {
    "logits": _bigram,
    "transformer.wte.weight": _transformer,
    "mlp.0.weight": _mlp,
    "context_block.mlp.c_fc.weight": _bow,
    "cell.xh_to_h.weight": lambda weights: _recurrent("rnn", weights, [("h", 1)]),
    "cell.xh_to_z.weight": _gru,
}
"""By the name of a tensor that only this model of makemore.py has (https://github.com/karpathy/makemore)."""
