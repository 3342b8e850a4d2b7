"""Which backends can compute a call of attention, every reason against the others, and which one runs.

The rules say why; running says whether. Where the device is present every backend is forced once, and what
was seen decides: a rule that is wrong for the installed torch is then named, not believed.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from flashmore.backends.call import AttentionCall
from flashmore.backends.cautions import cautions_about
from flashmore.backends.names import BACKENDS, Backend
from flashmore.backends.probe import affordable, default_of, failure_of, is_present
from flashmore.backends.rules import reasons_against
from flashmore.backends.sdpa import KERNELS

PASTE_FIRST: tuple[Backend, ...] = ("flash", "cudnn", "efficient", "math")
"""Which kernel the line to paste names where PyTorch's own choice is not known: the fewest cautions first."""

ABOUT: dict[str, str] = {
    "manual": "flashmore's four steps by hand; the whole (L, S) matrix is written to memory",
    "sdpa": "whichever of the following PyTorch picks",
    "math": "PyTorch's own four steps; 16-bit inputs are computed in float32",
    "flash": "FlashAttention-2, in tiles",
    "efficient": "memory-efficient attention, in tiles",
    "cudnn": "cuDNN's fused attention, in tiles",
    "flash on cpu": "a CPU kernel of that name: in tiles too, but not the GPU's FlashAttention",
}


@dataclass(frozen=True)
class Answer:
    """What is to be said about one backend."""

    name: Backend
    usable: bool
    reasons: tuple[str, ...]
    """Everything that speaks against it, each with what to change; empty if it is usable."""
    cautions: tuple[str, ...]
    """What to know before using it."""
    about: str


@dataclass(frozen=True)
class Explanation:
    """Which backends can compute a call, and which one PyTorch picks."""

    call: AttentionCall
    device_present: bool
    backends: tuple[Answer, ...]
    default: Backend | None
    """The kernel that ran when PyTorch chose; None where nothing could be run."""
    how: str
    """What shows the default, or why there is none."""
    ran: AttentionCall | None
    """What was run to find out: the call, or a smaller one that every rule treats alike."""
    line: str | None
    """Two lines of Python that force a kernel: PyTorch's choice, or the first that can run."""
    torch: str
    """The release that was asked."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def explain(call: AttentionCall) -> Explanation:
    """Say for every backend whether it can compute a call, with all reasons against it.

    Where the device is present, every backend is run once, forward and, if `call.needs_grad`, backward, and
    PyTorch's own choice is read off what ran: a call that is too large is replaced by a smaller one that
    every rule treats alike. Elsewhere the rules answer alone.

    Args:
        call: shapes, dtype, device, mask and so on; `flashmore.backends.contract.describe_call` makes one
            from tensors. Its compute capability counts only where no GPU is present.

    Returns:
        An answer for each of `BACKENDS`, and the default.

    Raises:
        RecipeError: from `AttentionCall`, for a call that no kernel takes.
    """
    present = is_present(call.device)
    if present and call.device == "cuda":
        call = replace(call, capability=torch.cuda.get_device_capability())
    ran = affordable(call) if present else None
    answers = tuple(_answer(backend, call, ran) for backend in BACKENDS)
    default, how = _default(call, present, ran)
    return Explanation(call, present, answers, default, how, ran, _line(default, answers), torch.__version__)


def _answer(backend: Backend, call: AttentionCall, ran: AttentionCall | None) -> Answer:
    reasons = tuple(map(str, reasons_against(backend, call)))
    cautions = tuple(map(str, cautions_about(backend, call)))
    about = ABOUT.get(f"{backend} on {call.device}", ABOUT[backend])
    if ran is not None:
        failure = failure_of(backend, ran)
        if failure is None and reasons:
            wrong = (f"it ran, though our rules for torch 2.11 to 2.13 say: {why}" for why in reasons)
            reasons, cautions = (), (*wrong, *cautions)
        elif failure is not None and not reasons:
            reasons = (
                f"torch {torch.__version__} refuses it, and no rule of ours knows why: {_first(failure)}",
            )
    return Answer(backend, not reasons, reasons, () if reasons else cautions, about)


def _default(call: AttentionCall, present: bool, ran: AttentionCall | None) -> tuple[Backend | None, str]:
    if not present:
        assumed = ".".join(map(str, call.capability))
        assuming = f"; the rules assume compute capability {assumed}" if call.device == "cuda" else ""
        return None, f"unknown: torch {torch.__version__} sees no {call.device} device here{assuming}"
    if ran is None:
        return None, "unknown: the call is too large to try, and no smaller one is treated alike"
    try:
        default, seen = default_of(ran)
    except (RuntimeError, IndexError) as error:
        against = reasons_against("sdpa", ran)
        return None, "none: the call fails: " + (str(against[0]) if against else _first(error))
    if ran == call:
        return default, f"seen by running it: {seen}"
    return default, f"seen by running a smaller one that every rule treats alike, q {ran.query}: {seen}"


def _line(default: Backend | None, answers: tuple[Answer, ...]) -> str | None:
    can_run = {answer.name: len(answer.cautions) for answer in answers if answer.usable}
    first = sorted((name for name in PASTE_FIRST if name in can_run), key=can_run.__getitem__)
    kernel = default or next(iter(first), None)
    if kernel is None:
        return None
    return (
        "from torch.nn.attention import SDPBackend, sdpa_kernel\n"
        f"with sdpa_kernel([SDPBackend.{KERNELS[kernel].name}]):"
    )


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
