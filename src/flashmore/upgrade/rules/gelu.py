"""FM002 manual-gelu: x times the normal distribution function of x, or its approximation by tanh."""

import math
from typing import Any

import numpy as np

from flashmore.upgrade.formulas.evaluate import erf
from flashmore.upgrade.formulas.formula import Formula, Formulas
from flashmore.upgrade.formulas.rule import finding
from flashmore.upgrade.rules.rule import Rule

ROUNDED = 1e-6
"""Of constants such as 0.79788; the two forms differ by 5e-4."""
AUTOCAST = "under 16-bit CUDA autocast the result may have its input's dtype: gelu keeps it, `pow` does not"


def _tanh(x: Any) -> Any:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _exact(x: Any) -> Any:
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


RULE = Rule(
    "FM002",
    "manual-gelu",
    "Use F.gelu instead of GELU written with tanh or erf.",
    "https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.gelu.html",
    r"\b(tanh|erfc?|sigmoid)\b",
    finding(Formulas(
        known=(
            Formula(
                "tanh", "GELU, approximated with tanh", _tanh,
                '{functional}.gelu({x}, approximate="tanh")', tolerance=ROUNDED,
                assumptions=(("pow", AUTOCAST),),
            ),
            Formula("erf", "GELU", _exact, "{functional}.gelu({x})", tolerance=ROUNDED),
        ),
        needs=frozenset(("tanh", "erf", "erfc", "sigmoid")),
        samples=(np.linspace(-6, 6, 41),),
        axes={1: ("B", "L", "D")},
        fused=frozenset(("gelu", "GELU")),
    )),
    needs=(('approximate="tanh"', "1.12"),),
)  # fmt: skip
