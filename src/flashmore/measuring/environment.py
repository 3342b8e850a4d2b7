"""The environment of a measurement: everything that determines whether two numbers are comparable."""

import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

from flashmore.git import Checkout, Indices, Unreadable


def environment(device: torch.device) -> dict[str, Any]:
    """Describe this machine and its software as JSON values; None if something is absent or unknown."""
    on_cuda = device.type == "cuda"
    return {
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if on_cuda else cpu_name(),
        "capability": list(torch.cuda.get_device_capability(device)) if on_cuda else None,
        "cpu_name": cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory_bytes(),
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if on_cuda else None,  # type: ignore[no-untyped-call]
        "commit": commit(),
        "clock_resolution_s": time.get_clock_info("perf_counter").resolution,
    }


def cpu_name() -> str:
    """The processor's name as reported by the system."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    """Main memory in bytes; None if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def others_cpu_seconds() -> float | None:
    """CPU seconds of all other processes and of the hypervisor since boot; None without /proc/stat."""
    try:
        words = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, words[1:9])
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None
    return busy - time.process_time()


def commit() -> str | None:
    """The commit of the checkout that this code runs from, with `+` if modified; None outside a checkout."""
    package = Path(__file__).resolve().parents[1]
    try:
        sources = list(package.rglob("*.py"))
        checkout = Checkout(package / "__init__.py", Indices(sources))
        head = checkout.commit()
        stored = {checkout.stores(path, path.read_bytes()) for path in sources}
    except (OSError, Unreadable):
        return None
    if head is None or not stored & {True, False}:  # the package is installed in somebody else's repository
        return None
    return head[:12] + ("" if stored == {True} else "+")
