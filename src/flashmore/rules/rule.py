"""A rule: one condition on an attention call, and its message."""

from collections.abc import Callable
from dataclasses import dataclass

from flashmore.rules.call import DEVICES, AttentionCall, Device

Kernels = tuple[tuple[Device, str], ...]


@dataclass(frozen=True)
class Rule:
    """One reason why some kernels cannot compute a call."""

    kernels: Kernels
    """The device and the backend of each."""
    breaks: Callable[[AttentionCall], bool]
    reason: str
    """In plain words; `{call}` is filled in."""
    change: str
    """What to change so that the rule no longer applies; likewise."""

    def breaks_on(self, backend: str, call: AttentionCall) -> bool:
        """Whether the rule applies to this backend on the call's device, and the call breaks it."""
        return (call.device, backend) in self.kernels and self.breaks(call)

    def filled(self, call: AttentionCall) -> "Reason":
        """The message for this call."""
        return Reason(self.reason.format(call=call), self.change.format(call=call))


@dataclass(frozen=True)
class Reason:
    """Why a backend cannot run, and what to change."""

    why: str
    change: str

    def __str__(self) -> str:
        return f"{self.why} ({self.change})"


def on(device: Device, *backends: str) -> Kernels:
    """These backends on this device."""
    return tuple((device, backend) for backend in backends)


def everywhere(*backends: str) -> Kernels:
    """These backends on every device."""
    return tuple((device, backend) for device in DEVICES for backend in backends)
