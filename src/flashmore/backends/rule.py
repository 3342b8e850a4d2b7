"""What a rule is: one condition on a call of attention, and what is to be said where it holds."""

from collections.abc import Callable
from dataclasses import dataclass

from flashmore.backends.call import DEVICES, AttentionCall, Device
from flashmore.backends.names import Backend

Kernels = tuple[tuple[Device, Backend], ...]


@dataclass(frozen=True)
class Rule:
    """One reason for which some kernels cannot compute a call."""

    kernels: Kernels
    """The device and the backend of each."""
    breaks: Callable[[AttentionCall], bool]
    reason: str
    """In plain words; `{call}` is filled in."""
    change: str
    """What to change so that the rule no longer applies; likewise."""


@dataclass(frozen=True)
class Reason:
    """A rule that a call breaks: why the backend cannot run, and what to change."""

    why: str
    change: str

    def __str__(self) -> str:
        return f"{self.why} ({self.change})"


def on(device: Device, *backends: Backend) -> Kernels:
    """These backends on this device."""
    return tuple((device, backend) for backend in backends)


def everywhere(*backends: Backend) -> Kernels:
    """These backends on every device."""
    return tuple(kernel for device in DEVICES for kernel in on(device, *backends))
