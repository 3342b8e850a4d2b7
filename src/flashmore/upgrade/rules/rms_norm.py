"""FM005 manual-rms-norm: x / sqrt(mean of x² + eps) over the last dimension."""

from typing import Any

import numpy as np

from flashmore.upgrade.formulas.formula import LIKE_WEIGHT, Formula, Formulas
from flashmore.upgrade.formulas.rule import finding
from flashmore.upgrade.formulas.samples import ROWS_OF_MANY_SCALES
from flashmore.upgrade.rules.rule import Rule

AUTOCAST = "under 16-bit CUDA autocast the result may have its input's dtype: rms_norm keeps it"


def _mean_square(x: Any) -> Any:
    return np.square(x).mean(-1, keepdims=True)


def _norm(x: Any, eps: Any) -> Any:
    return x / np.sqrt(_mean_square(x) + eps)


_ASSUMED = (("", AUTOCAST),)
_NAME = "root mean square normalization"
_CALL = "{functional}.rms_norm({x}, {shape}.shape[-1:], "

RULE = Rule(
    "FM005",
    "manual-rms-norm",
    "Use F.rms_norm instead of a mean of squares and a division.",
    "https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.rms_norm.html",
    r"\b(r?sqrt|norm)\b|\*\* *-?\(?0?\.5|\bpow\b",
    finding(Formulas(
        known=(
            Formula(
                "with weight", _NAME,
                lambda x, weight, eps: _norm(x, eps) * weight,
                _CALL + "{weight}, {eps})",
                roles=("weight", "eps"), guard=LIKE_WEIGHT,
                assumptions=_ASSUMED,
            ),
            Formula("plain", _NAME, _norm, _CALL + "eps={eps})", roles=("eps",), assumptions=_ASSUMED),
            Formula(
                "eps outside",
                "eps is added to the root, and rms_norm adds it to the mean of squares",
                lambda x, eps: x / (np.sqrt(_mean_square(x)) + eps),
                advice="if no trained weights depend on it, use rms_norm: the results differ slightly",
                roles=("eps",),
            ),
        ),
        needs=frozenset(("sqrt", "rsqrt", "norm", "pow")),
        samples=(*ROWS_OF_MANY_SCALES.values(),),
        least=2,
        fused=frozenset(("rms_norm", "RMSNorm")),
    )),
    needs=(("rms_norm(", "2.4"),),
)  # fmt: skip
