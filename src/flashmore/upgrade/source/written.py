"""A softmax that is written out: `e = torch.exp(x - m)`, and then `e / e.sum(dim=-1, keepdim=True)`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flashmore.upgrade.source.graph import Value, number


@dataclass(frozen=True, eq=False)
class WrittenSoftmax:
    """What a softmax is made of.

    Args:
        scores: its input.
        dim: its axis, as the argument `dim`.
        parts: the values between its input and itself.
    """

    scores: tuple[Value, ...]
    dim: dict[str, Value]
    parts: tuple[Value, ...]


def written_softmax(
    op: str, args: Sequence[Value], named: Mapping[str, Value] | None
) -> WrittenSoftmax | None:
    """Whether an operation is the last one of a softmax over one axis."""
    if op == "exp" and len(args) == 1 and not named:
        return _of_logarithm(args[0])
    if op not in ("div", "divide", "true_divide") or len(args) != 2 or named:
        return None
    exponentials, total = args
    if exponentials.op != "exp" or len(exponentials.args) != 1 or exponentials.inplace or exponentials.named:
        return None
    sums = total.args[0] if total.op in ("unsqueeze", "index") and len(total.args) == 2 else total
    if sums.op != "sum" or not sums.args or sums.args[0] is not exponentials:
        return None
    dim = _reduced(sums, total)
    return WrittenSoftmax(exponentials.args, {"dim": dim}, (exponentials, sums, total)) if dim else None


def _of_logarithm(value: Value) -> WrittenSoftmax | None:
    """What exp() is given in `log_softmax(x, dim).exp()` and `exp(x - logsumexp(x, dim, keepdim=True))`."""
    if value.op == "log_softmax" and value.args and not set(value.named) - {"dim"}:
        dim = value.get(1, "dim")
        return WrittenSoftmax(value.args[:1], {"dim": dim}, (value,)) if dim and len(value.args) < 3 else None
    if value.op != "sub" or len(value.args) != 2 or value.named or value.inplace:
        return None
    scores, total = value.args
    sums = total.args[0] if total.op in ("unsqueeze", "index") and len(total.args) == 2 else total
    if sums.op != "logsumexp" or not sums.args or sums.args[0] is not scores:
        return None
    dim = _reduced(sums, total)
    return WrittenSoftmax((scores,), {"dim": dim}, (sums, total, value)) if dim else None


def _reduced(sums: Value, total: Value) -> Value | None:
    """The one axis that is reduced, and is kept or restored with length 1; else None."""
    dim = sums.get(1, "dim") or sums.named.get("axis")
    kept = sums.get(2, "keepdim") or sums.named.get("keepdims")
    if dim is None or dim.op == "tuple" or len(sums.args) + len(sums.named) > 3:
        return None
    if set(sums.named) - {"dim", "axis", "keepdim", "keepdims"}:
        return None
    if kept is not None and (kept.op != "const" or not isinstance(kept.detail, bool)):
        return None
    if sums is total:
        return dim if kept is not None and kept.detail else None
    last = total.args[1]
    restored = last.key == dim.key if total.op == "unsqueeze" else number(dim) == -1 and _is_new_last(last)
    return dim if restored and not (kept is not None and kept.detail) else None


def _is_new_last(index: Value) -> bool:
    """Whether an index is `[..., None]`."""
    details = [each.detail for each in index.args if each.op == "const"]
    return index.op == "tuple" and len(index.args) == 2 and details == [Ellipsis, None]
