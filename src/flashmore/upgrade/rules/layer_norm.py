"""FM004 manual-layer-norm: (x - mean) / sqrt(variance + eps) over the last dimension."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from flashmore.upgrade.formulas.formula import LIKE_WEIGHT, Formula, Formulas
from flashmore.upgrade.formulas.rule import finding
from flashmore.upgrade.formulas.samples import ROWS_OF_MANY_SCALES
from flashmore.upgrade.rules.rule import Rule

AUTOCAST = "under 16-bit CUDA autocast the result may be float32, as that of nn.LayerNorm is"


def _centred(x: Any) -> Any:
    return x - x.mean(-1, keepdims=True)


def _norm(x: Any, eps: Any, ddof: int = 0) -> Any:
    return _centred(x) / np.sqrt(x.var(-1, ddof=ddof, keepdims=True) + eps)


def _outside(x: Any, eps: Any, ddof: int = 0) -> Any:
    return _centred(x) / (x.std(-1, ddof=ddof, keepdims=True) + eps)


_CALL = "{functional}.layer_norm({x}, {shape}.shape[-1:], "
_ASSUMED = (("", AUTOCAST),)
_NAME = "layer normalization"
_ADVICE = "if no trained weights depend on it, use layer_norm: the results differ slightly"
_OTHERS = (
    ("unbiased", partial(_norm, ddof=1), "its variance divides by n - 1, that of layer_norm by n"),
    ("unbiased", partial(_outside, ddof=1), "its variance divides by n - 1, that of layer_norm by n"),
    (
        "eps outside",
        _outside,
        "eps is added to the standard deviation, and layer_norm adds it to the variance",
    ),
)
"""What looks like it and is another function, with the reason."""


def _others() -> Iterator[Formula]:
    for name, norm, reason in _OTHERS:
        yield Formula(name, reason, norm, advice=_ADVICE, roles=("eps",))
        yield Formula(
            name, reason, lambda x, weight, eps, norm=norm: norm(x, eps) * weight, advice=_ADVICE,
            roles=("weight", "eps"),
        )  # fmt: skip
        yield Formula(
            name, reason, lambda x, weight, bias, eps, norm=norm: norm(x, eps) * weight + bias,
            advice=_ADVICE, roles=("weight", "bias", "eps"),
        )  # fmt: skip


RULE = Rule(
    "FM004",
    "manual-layer-norm",
    "Use F.layer_norm instead of a mean, a variance and a division.",
    "https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.layer_norm.html",
    r"\b(r?sqrt|std|std_mean)\b|\*\* *-?\(?0?\.5|\bpow\b",
    finding(Formulas(
        known=(
            Formula(
                "with weight and bias", _NAME,
                lambda x, weight, bias, eps: _norm(x, eps) * weight + bias,
                _CALL + "{weight}, {bias}, {eps})",
                roles=("weight", "bias", "eps"), guard=LIKE_WEIGHT, assumptions=_ASSUMED,
            ),
            Formula(
                "with weight", _NAME,
                lambda x, weight, eps: _norm(x, eps) * weight,
                _CALL + "{weight}, eps={eps})",
                roles=("weight", "eps"), guard=LIKE_WEIGHT, assumptions=_ASSUMED,
            ),
            Formula("plain", _NAME, _norm, _CALL + "eps={eps})", roles=("eps",), assumptions=_ASSUMED),
            *_others(),
        ),
        needs=frozenset(("sqrt", "rsqrt", "std", "std_mean", "pow")),
        samples=(*ROWS_OF_MANY_SCALES.values(),),
        least=2,
        fused=frozenset(("layer_norm", "LayerNorm")),
    )),
)  # fmt: skip
