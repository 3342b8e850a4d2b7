"""Which backends can compute an attention call, every reason against the others, and which one runs.

If the device is present, every backend is forced once, and the outcome overrides the rules, which give the
reasons: a rule that is wrong for the installed torch is reported.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from flashmore.backends.probe import affordable, default_of, failure_of, is_present
from flashmore.rules.call import AttentionCall
from flashmore.specs import BackendSpec, backend_spec, backends


@dataclass(frozen=True)
class Answer:
    """The explanation for one backend."""

    name: str
    usable: bool
    reasons: tuple[str, ...]
    """Every reason against it, each with what to change; empty if it is usable."""
    cautions: tuple[str, ...]
    """Caveats of using it."""
    about: str


@dataclass(frozen=True)
class Explanation:
    """Which backends can compute a call, and which one PyTorch picks."""

    call: AttentionCall
    device_present: bool
    backends: tuple[Answer, ...]
    default: str | None
    """The kernel that PyTorch chose; None if nothing could be run."""
    how: str
    """How the default was determined, or why there is none."""
    ran: AttentionCall | None
    """The call that was run: the original, or a smaller one equivalent under every rule."""
    line: str | None
    """Two lines of Python that force a kernel: PyTorch's choice, or the first that can run."""
    torch: str
    """The installed torch release."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def explain(call: AttentionCall) -> Explanation:
    """Explain for every backend whether it can compute a call, with all reasons against it.

    If the device is present, every backend is run once, forward and, if `call.needs_grad`, backward, and
    PyTorch's default is read from what ran; a call that is too large is replaced by a smaller one equivalent
    under every rule. Otherwise only the rules are used.

    Args:
        call: shapes, dtype, device, mask and so on; `flashmore.backends.contract.describe_call` builds one
            from tensors. Its compute capability is only used if no GPU is present.

    Returns:
        An answer for each of `flashmore.specs.backends`, and the default.

    Raises:
        ConfigError: from `AttentionCall`, for a call that no kernel supports.
    """
    present = is_present(call.device)
    if present and call.device == "cuda":
        call = replace(call, capability=torch.cuda.get_device_capability())
    ran = affordable(call) if present else None
    answers = tuple(_answer(spec, call, ran) for spec in backends().values())
    default, how = _default(call, present, ran)
    return Explanation(call, present, answers, default, how, ran, _line(default, answers), torch.__version__)


def _answer(spec: BackendSpec, call: AttentionCall, ran: AttentionCall | None) -> Answer:
    reasons = tuple(map(str, spec.reasons_against(call)))
    cautions = tuple(map(str, spec.cautions_about(call)))
    about = spec.on_device.get(call.device, spec.summary)
    if ran is not None:
        failure = failure_of(spec.name, ran)
        if failure is None and reasons:
            wrong = (f"it ran, though our rules for torch 2.11 to 2.13 say: {why}" for why in reasons)
            reasons, cautions = (), (*wrong, *cautions)
        elif failure is not None and not reasons:
            reasons = (
                f"torch {torch.__version__} refuses it, and no rule of ours knows why: {_first(failure)}",
            )
    return Answer(spec.name, not reasons, reasons, () if reasons else cautions, about)


def _default(call: AttentionCall, present: bool, ran: AttentionCall | None) -> tuple[str | None, str]:
    if not present:
        assumed = ".".join(map(str, call.capability))
        assuming = f"; the rules assume compute capability {assumed}" if call.device == "cuda" else ""
        return None, f"unknown: torch {torch.__version__} sees no {call.device} device here{assuming}"
    if ran is None:
        return None, "unknown: the call is too large to try, and no smaller one is treated alike"
    try:
        default, seen = default_of(ran)
    except (RuntimeError, IndexError) as error:
        against = backend_spec("sdpa").reasons_against(ran)
        return None, "none: the call fails: " + (str(against[0]) if against else _first(error))
    if ran == call:
        return default, f"seen by running it: {seen}"
    return default, f"seen by running a smaller one that every rule treats alike, q {ran.query}: {seen}"


def _line(default: str | None, answers: tuple[Answer, ...]) -> str | None:
    """Force the kernel that PyTorch chose; if unknown, a fused one with the fewest cautions."""
    ranks = {}
    for answer in answers:
        spec = backend_spec(answer.name)
        if answer.usable and spec.sdp_backend:
            ranks[spec.sdp_backend] = (answer.name != default, len(answer.cautions), not spec.fused)
    if not ranks:
        return None
    return (
        "from torch.nn.attention import SDPBackend, sdpa_kernel\n"
        f"with sdpa_kernel([SDPBackend.{min(ranks, key=ranks.__getitem__)}]):"
    )


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
