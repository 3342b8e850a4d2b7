"""One case of a test: the old lines in float64 and in the case's precision, the new ones, the judgement."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from flashmore.measuring.accuracy import judge
from flashmore.upgrade.verify.result import CaseResult, TensorVerdict
from flashmore.upgrade.verify.tensors import Argument

Lines = Callable[..., Any]
"""One of the two functions of a fragment, `old` or `new`."""
MakeArguments = Callable[[bool], list[Argument]]
"""Fresh arguments; True for those in float64."""
Run = Callable[..., dict[str, Tensor]]
"""Runs lines as `run` does: in this process, or in another (`flashmore.upgrade.verify.runner`)."""
NAN = "not compared: the original is NaN"
WHERE_FINITE = "equal where the original is finite"
SMALL_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class LinesRaised(Exception):
    """The lines raised.

    Args:
        kind: the name of the exception's class.
        message: the first line of its message.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class WithoutDropout(TorchFunctionMode):
    """Every probability of dropout is 0, whoever gives it: what is left can be compared exactly."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in (F.dropout, torch.dropout):
            return args[0] if args else given["input"]
        if func is F.scaled_dot_product_attention:
            args, given = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args, given
            given |= {"dropout_p": 0.0} if "dropout_p" in given else {}
        return func(*args, **given)


class InFloat64(TorchFunctionMode):
    """Casts to a smaller float become casts to float64, so that a reference keeps its precision."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            func, args = Tensor.double, args[:1]
        given = {name: _wide(value) for name, value in (kwargs or {}).items()}
        return func(*map(_wide, args), **given)


def _wide(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in SMALL_FLOATS else value


@dataclass(frozen=True)
class Setting:
    """Under what a case runs."""

    autocast: Literal["float16", "bfloat16"] | None = None
    eps: float | None = None
    """One rounding of the smallest dtype that takes part; None where that is each result's own."""
    math_kernel: bool = False
    exact: bool = True
    """Every dropout is off, in training too."""
    backward: bool = True
    widens: bool = False
    """The new lines may return float32 where the old ones return 16 bits."""


def run_cases(
    settings: Mapping[str, Setting], old: Run, new: Run, make: MakeArguments
) -> Iterator[CaseResult]:
    """Run both and judge the output and the gradient of every tensor that goes in.

    The old lines call no fused kernel, so what they compute is the same for all cases, and is computed once.

    Args:
        settings: of cases by name, which differ in the kernel alone.
        old: the original lines, which define what is right.
        new: the rewritten ones.
        make: fresh arguments for each run.
    """
    setting = replace(next(iter(settings.values())), math_kernel=False)
    try:
        reference = old(make(True), replace(setting, autocast=None, eps=None), double=True)
        plain = old(make(False), setting)
    except LinesRaised as error:
        missing = error.kind == "NameError"
        why = "the extracted lines are incomplete" if missing else "the original rejects it"
        for name in settings:
            yield CaseResult(name, "differs" if missing else "skipped", f"{why}: {error.message}")
        return
    for name, each in settings.items():
        try:
            answer = new(make(False), each)
        except LinesRaised as error:
            yield CaseResult(name, "differs", f"the rewrite raises {error.kind}: {error.message}")
        else:
            yield _judged(name, answer, plain, reference, each)


def _judged(
    name: str,
    answer: Mapping[str, Tensor],
    plain: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    setting: Setting,
) -> CaseResult:
    if answer.keys() != plain.keys():
        return CaseResult(name, "differs", f"{len(answer)} results instead of {len(plain)}")
    verdicts = tuple(_verdicts(answer, plain, reference, setting))
    bad = [verdict for verdict in verdicts if not verdict.good]
    if bad:
        return CaseResult(name, "differs", f"{bad[0].name} {bad[0].verdict}", verdicts)
    if all(verdict.verdict == NAN for verdict in verdicts):
        return CaseResult(name, "not compared", "the original is NaN", verdicts)
    partly = [verdict.name for verdict in verdicts if verdict.verdict != "equal"]
    detail = f"the original is NaN in {', '.join(partly)}: only the rest is compared" if partly else ""
    return CaseResult(name, "equal", detail, verdicts)


def _verdicts(
    answer: Mapping[str, Tensor],
    plain: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    setting: Setting,
) -> Iterator[TensorVerdict]:
    finite = {name: plain[name].isfinite() & reference[name].isfinite() for name in plain}
    whole = {name: bool(kept.all()) for name, kept in finite.items()}
    sizes = {
        name: _largest(right if whole[name] else right[finite[name]]) for name, right in reference.items()
    }
    # Gradients may be small differences of large terms; outputs are not, so only outputs count for them.
    outs = max((size for name, size in sizes.items() if name.startswith("out")), default=0.0)
    largest = max(sizes.values(), default=0.0)
    sums = _sums(reference, sizes)
    for name, right in reference.items():
        got, near, kept = answer[name], plain[name], finite[name]
        if got.shape != near.shape:
            yield TensorVerdict(name, f"differs: shape {tuple(got.shape)} instead of {tuple(near.shape)}")
        elif got.dtype != near.dtype and not (setting.widens and got.dtype == torch.float32):
            yield TensorVerdict(name, f"differs: {got.dtype} instead of {near.dtype}")
        elif not kept.numel() or not (whole[name] or kept.any()):
            yield TensorVerdict(name, NAN if kept.numel() else "equal")
        else:
            most = outs if name.startswith("out") else largest
            if not whole[name]:
                got, near, right = got[kept], near[kept], right[kept]
            found = judge(
                name,
                got,
                near,
                right.double(),
                largest_of_all=most,
                summed=sums.get(name, 0.0),
                eps=setting.eps,
            )
            if found.good:
                word = "equal" if whole[name] else WHERE_FINITE
            else:
                word = f"differs: its error of {found.error:.2g} exceeds its budget of {found.budget:.2g}"
            error = found.error if found.error < float("inf") else None
            yield TensorVerdict(name, word, error, found.budget)


def _sums(results: Mapping[str, Tensor], sizes: Mapping[str, float]) -> dict[str, float]:
    """Of each gradient that is a sum over elements of a larger one: a term times the root of their number.

    That of a learned scale is the sum of the products of the queries' elements and their gradients, which are
    as large as the gradients are at their largest.
    """
    gradients = {name: each for name, each in results.items() if name.startswith("d ")}
    most = max((each.numel() for each in gradients.values()), default=0)
    term = max((sizes[name] for name, each in gradients.items() if each.numel() == most), default=0.0)
    count = {name: most / max(each.numel(), 1) for name, each in gradients.items()}
    return {name: term * each**0.5 for name, each in count.items() if each > 1}


def run(
    lines: Lines, arguments: Sequence[Argument], setting: Setting, *, double: bool = False
) -> dict[str, Tensor]:
    """The outputs, `out` or `out 0` and so on, and the gradients, `d` and an argument's name; detached.

    Raises:
        LinesRaised: they do not take these arguments.
    """
    with raised():
        outs = forward(lines, arguments, setting, double=double)
        leaves = {f"d {each.name}": each.leaf for each in arguments if each.leaf is not None}
        found = {name: out.detach() for name, out in outs.items()}
        differentiable = {name: out for name, out in outs.items() if out.requires_grad}
        if not setting.backward or not leaves or not differentiable:
            return found
        starts = cotangents({name: out.shape for name, out in differentiable.items()})
        gradients = backward(differentiable, list(leaves.values()), starts)
        return found | dict(zip(leaves, gradients, strict=True))


@contextmanager
def raised() -> Iterator[None]:
    """Whatever the lines raise becomes `LinesRaised`; a lack of Python's own memory stays what it is."""
    try:
        yield
    except (MemoryError, LinesRaised):
        raise
    except Exception as error:  # noqa: BLE001 - lines may raise anything
        raise LinesRaised(type(error).__name__, _first_line(error)) from None


def forward(
    lines: Lines, arguments: Sequence[Argument], setting: Setting, *, double: bool = False
) -> dict[str, Tensor]:
    """The outputs by name, `out` or `out 0` and so on, attached to the graph."""
    with torch.set_grad_enabled(setting.backward), surroundings(setting, double):
        result = lines(*(argument.value for argument in arguments))
    return {"out": result} if isinstance(result, Tensor) else {f"out {i}": t for i, t in enumerate(result)}


def cotangents(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """What the gradients of some outputs start from, in float64.

    Laid out alike for every run, whatever the layout of its output is.
    """
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def backward(
    outs: Mapping[str, Tensor], leaves: Sequence[Tensor], starts: Mapping[str, Tensor]
) -> tuple[Tensor, ...]:
    """The gradient of each leaf; zeros where nothing leads to it."""
    given = [starts[name].to(out) for name, out in outs.items()]
    return torch.autograd.grad(
        list(outs.values()), list(leaves), given, allow_unused=True, materialize_grads=True
    )


@contextmanager
def surroundings(setting: Setting, double: bool = False) -> Iterator[None]:
    """Autocast, one kernel alone, no dropout, float64: what a run is made under."""
    autocast = (
        torch.autocast("cpu", dtype=getattr(torch, setting.autocast)) if setting.autocast else nullcontext()
    )
    kernel = sdpa_kernel([SDPBackend.MATH]) if setting.math_kernel else nullcontext()
    dropout = WithoutDropout() if setting.exact else nullcontext()
    with autocast, kernel, dropout, InFloat64() if double else nullcontext():
        yield


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
