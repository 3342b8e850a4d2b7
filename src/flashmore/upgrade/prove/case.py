"""One case of a proof: the old lines in float64 and in the case's precision, the new ones, the judgement."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from flashmore.measuring.accuracy import judge
from flashmore.upgrade.prove.result import CaseResult, TensorVerdict
from flashmore.upgrade.prove.tensors import Argument

Lines = Callable[..., Any]
"""One of the two functions of a fragment, `old` or `new`."""
MakeArguments = Callable[[bool], list[Argument]]
"""Fresh arguments; True for those in float64."""
NAN = "not compared: the original is NaN"
WHERE_FINITE = "equal where the original is finite"
SMALL_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class OldRefuses(Exception):
    """The original lines do not take these inputs; the message is theirs."""


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

    sixteen: bool = False
    """bfloat16 under autocast."""
    math_kernel: bool = False
    exact: bool = True
    """Every dropout is off, in training too."""
    backward: bool = True


def run_case(name: str, old: Lines, new: Lines, make: MakeArguments, setting: Setting) -> CaseResult:
    """Run both and judge the output and the gradient of every tensor that goes in.

    Args:
        name: what the case is called.
        old: the original lines, which define what is right.
        new: the rewritten ones.
        make: fresh arguments for each run.
        setting: precision, kernel, dropout, and whether gradients are compared.
    """
    plain_setting = Setting(setting.sixteen, False, setting.exact, setting.backward)
    try:
        reference = _run(old, make(True), Setting(False, False, setting.exact, setting.backward), double=True)
        plain = _run(old, make(False), plain_setting)
    except NameError as error:
        return CaseResult(name, "differs", f"the extracted lines lack something: {error}")
    except (RuntimeError, ValueError, IndexError, AssertionError, TypeError, AttributeError) as error:
        return CaseResult(name, "skipped", f"the original does not take it: {_first_line(error)}")
    try:
        answer = _run(new, make(False), setting)
    except Exception as error:  # noqa: BLE001 - whatever the rewrite raises where the original runs speaks against it
        return CaseResult(name, "differs", f"the rewrite raises {type(error).__name__}: {_first_line(error)}")
    return _judged(name, answer, plain, reference, setting)


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
    detail = f"the original is NaN in {', '.join(partly)}: the rest is compared" if partly else ""
    return CaseResult(name, "equal", detail, verdicts)


def _verdicts(
    answer: Mapping[str, Tensor],
    plain: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    setting: Setting,
) -> Iterator[TensorVerdict]:
    finite = {name: plain[name].isfinite() & reference[name].isfinite() for name in plain}
    sizes = {name: _largest(reference[name][finite[name]]) for name in reference}
    # Gradients may be small differences of large terms; outputs are not, so only outputs count for them.
    outs = max((size for name, size in sizes.items() if name.startswith("out")), default=0.0)
    largest = max(sizes.values(), default=0.0)
    eps = torch.finfo(torch.bfloat16).eps if setting.sixteen else None
    for name, right in reference.items():
        got, near, kept = answer[name], plain[name], finite[name]
        if got.shape != near.shape:
            yield TensorVerdict(name, f"differs: shape {tuple(got.shape)} instead of {tuple(near.shape)}")
        elif got.dtype != near.dtype:
            yield TensorVerdict(name, f"differs: {got.dtype} instead of {near.dtype}")
        elif not kept.any():
            yield TensorVerdict(name, NAN if kept.numel() else "equal")
        else:
            most = outs if name.startswith("out") else largest
            found = judge(name, got[kept], near[kept], right[kept].double(), largest_of_all=most, eps=eps)
            if found.good:
                word = "equal" if kept.all() else WHERE_FINITE
            else:
                word = f"differs: its error is {found.error:.2g}, and its budget {found.budget:.2g}"
            error = found.error if found.error < float("inf") else None
            yield TensorVerdict(name, word, error, found.budget)


def _run(
    lines: Lines, arguments: list[Argument], setting: Setting, *, double: bool = False
) -> dict[str, Tensor]:
    """The outputs and the gradients by name, detached."""
    with torch.set_grad_enabled(setting.backward), surroundings(setting, double):
        result = lines(*(argument.value for argument in arguments))
    outs = {"out": result} if isinstance(result, Tensor) else {f"out {i}": t for i, t in enumerate(result)}
    found = {name: out.detach() for name, out in outs.items()}
    leaves = {f"d {a.name}": a.leaf for a in arguments if a.leaf is not None}
    if not setting.backward or not leaves or not any(out.requires_grad for out in outs.values()):
        return found
    differentiable = [out for out in outs.values() if out.requires_grad]
    generator = torch.Generator().manual_seed(1)
    # Laid out alike for every run, whatever the layout of its output is.
    cotangents = [
        torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out) for out in differentiable
    ]
    gradients = torch.autograd.grad(
        differentiable, list(leaves.values()), cotangents, allow_unused=True, materialize_grads=True
    )
    return found | dict(zip(leaves, gradients, strict=True))


@contextmanager
def surroundings(setting: Setting, double: bool = False) -> Iterator[None]:
    """Autocast, one kernel alone, no dropout, float64: what a run is made under."""
    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if setting.sixteen else nullcontext()
    kernel = sdpa_kernel([SDPBackend.MATH]) if setting.math_kernel else nullcontext()
    dropout = WithoutDropout() if setting.exact else nullcontext()
    with autocast, kernel, dropout, InFloat64() if double else nullcontext():
        yield


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
