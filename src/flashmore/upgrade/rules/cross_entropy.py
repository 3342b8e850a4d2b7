"""FM006 manual-cross-entropy: the mean of -log(softmax(x)) at the class of each row, nll_loss included."""

from typing import Any

from flashmore.upgrade.formulas.evaluate import at_classes, log_softmax
from flashmore.upgrade.formulas.formula import Formula, Formulas
from flashmore.upgrade.formulas.rule import finding
from flashmore.upgrade.formulas.samples import ROWS_OF_MANY_SPREADS
from flashmore.upgrade.rules.rule import Rule

AUTOCAST = "under 16-bit autocast the loss may be float32, as that of cross_entropy is"
CLASSES = "the targets are a tensor of class numbers from 0 on, int64 or uint8, one for each row"
_NAME = "cross entropy"
_ALL_ROWS = "`{}` counts all rows of the input"
_ASSUMED = (
    ("", AUTOCAST),
    ("", CLASSES),
    ("arange", _ALL_ROWS.format("arange")),
    ("py:range", _ALL_ROWS.format("range")),
)


def _at_classes(x: Any, target: Any) -> Any:
    return -at_classes(log_softmax(x, 1), target)


RULE = Rule(
    "FM006",
    "manual-cross-entropy",
    "Use F.cross_entropy instead of log_softmax and the entries of the classes.",
    "https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.cross_entropy.html",
    r"\blog\b|softmax|\blogsumexp\b|nll_loss",
    finding(Formulas(
        known=(
            Formula(
                "mean", _NAME, lambda x, target: _at_classes(x, target).mean(),
                "{functional}.cross_entropy({x}, {target})", roles=("target",), assumptions=_ASSUMED,
            ),
            Formula(
                "sum", _NAME, lambda x, target: _at_classes(x, target).sum(),
                '{functional}.cross_entropy({x}, {target}, reduction="sum")', roles=("target",),
                assumptions=_ASSUMED,
            ),
            Formula(
                "each", _NAME, _at_classes, '{functional}.cross_entropy({x}, {target}, reduction="none")',
                roles=("target",), assumptions=_ASSUMED,
            ),
        ),
        needs=frozenset(("log", "log_softmax", "logsumexp")),
        samples=(ROWS_OF_MANY_SPREADS[2], ROWS_OF_MANY_SPREADS[3], ROWS_OF_MANY_SPREADS[2][:1]),
        fused=frozenset(("cross_entropy", "CrossEntropyLoss")),
        widens=True,
    )),
)  # fmt: skip
