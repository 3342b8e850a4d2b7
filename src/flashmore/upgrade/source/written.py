"""A softmax that is written out: `e = torch.exp(x - m)`, and then `e / e.sum(dim=-1, keepdim=True)`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flashmore.upgrade.source.graph import Value


@dataclass(frozen=True, eq=False)
class WrittenSoftmax:
    """What a division divides: exponentials and their sums."""

    scores: tuple[Value]
    dim: dict[str, Value]
    parts: tuple[Value, ...]
    """The exponentials and what makes their sums."""


def written_softmax(
    op: str, args: Sequence[Value], named: Mapping[str, Value] | None
) -> WrittenSoftmax | None:
    """Whether an operation is the division of a softmax over one axis."""
    if op not in ("div", "divide", "true_divide") or len(args) != 2 or named:
        return None
    exponentials, total = args
    sums, parts = total, [exponentials]
    if sums.op == "unsqueeze" and len(sums.args) == 2:
        parts.append(sums)
        sums = sums.args[0]
    if exponentials.op != "exp" or len(exponentials.args) != 1 or exponentials.inplace or exponentials.named:
        return None
    dim, kept = sums.get(1, "dim"), sums.get(2, "keepdim")
    if (
        sums.op != "sum"
        or sums.args[0] is not exponentials
        or dim is None
        or set(sums.named) - {"dim", "keepdim"}
    ):
        return None
    keeps = kept is not None and kept.op == "const" and kept.detail is True
    if keeps == (sums is not total) or (sums is not total and total.args[1].key != dim.key):
        return None
    return WrittenSoftmax((exponentials.args[0],), {"dim": dim}, (*parts, sums))
