"""A softmax that is written out: `e = torch.exp(x - m)`, and then `e / e.sum(dim=-1, keepdim=True)`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flashmore.upgrade.source.graph import Value


@dataclass(frozen=True, eq=False)
class WrittenSoftmax:
    """What a division divides: exponentials and their sums."""

    scores: tuple[Value, ...]
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
    sums = total.args[0] if total.op == "unsqueeze" and len(total.args) == 2 else total
    if exponentials.op != "exp" or len(exponentials.args) != 1 or exponentials.inplace or exponentials.named:
        return None
    if sums.op != "sum" or not 1 <= len(sums.args) <= 3 or sums.args[0] is not exponentials:
        return None
    dim, kept = sums.get(1, "dim"), sums.get(2, "keepdim")
    if dim is None or set(sums.named) - {"dim", "keepdim"}:
        return None
    keeps = kept is not None and kept.op == "const" and kept.detail is True
    restored = sums is not total and total.args[1].key == dim.key
    if keeps == restored or (sums is not total and not restored):
        return None
    return WrittenSoftmax(exponentials.args, {"dim": dim}, (exponentials, sums, total))
