"""FM007 manual-log-softmax: the logarithm of a softmax, or x minus its logsumexp."""

from functools import partial

from flashmore.upgrade.formulas.evaluate import log_softmax
from flashmore.upgrade.formulas.formula import Formula, Formulas
from flashmore.upgrade.formulas.rule import finding
from flashmore.upgrade.formulas.samples import ROWS_OF_MANY_SPREADS
from flashmore.upgrade.rules.rule import Rule

RULE = Rule(
    "FM007",
    "manual-log-softmax",
    "Use F.log_softmax instead of the logarithm of a softmax.",
    "https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.log_softmax.html",
    r"\blog\b|\blogsumexp\b",
    finding(
        Formulas(
            known=[
                Formula(
                    f"dim={axis}",
                    "the logarithm of a softmax",
                    partial(log_softmax, axis=axis),
                    f"{{functional}}.log_softmax({{x}}, dim={axis})",
                    axis=axis,
                )
                for axis in (-1, 1, 0, 2, -2, 3)
            ],
            needs=frozenset(("log", "logsumexp")),
            samples=(*ROWS_OF_MANY_SPREADS.values(),),
            least=2,
            fused=frozenset(("log_softmax", "LogSoftmax")),
            keeps_result=True,
            widens=True,
        )
    ),
)
