"""The environment of a measurement: everything that determines whether two numbers are comparable."""

import os
import platform
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from flashmore.git import Checkout, Indices, Unreadable
from flashmore.ranks import world_size


def environment(device: torch.device) -> dict[str, Any]:
    """Describe this machine and its software as JSON values; None if something is absent or unknown."""
    on_cuda, ranks = device.type == "cuda", world_size()
    return {
        **({"ranks": ranks} if ranks > 1 else {}),
        "device": device.type,
        "device_name": device_name(device),
        "capability": list(torch.cuda.get_device_capability(device)) if on_cuda else None,
        "cpu_name": cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if on_cuda else None,  # type: ignore[no-untyped-call]
        "commit": commit(),
        "clock_resolution_s": time.get_clock_info("perf_counter").resolution,
    }


def devices() -> dict[str, str]:
    """The name of every device that torch can use here, by the device: cpu, cuda:0, cuda:1, mps."""
    found = [
        torch.device("cpu"),
        *(torch.device("cuda", index) for index in range(torch.cuda.device_count())),
    ]
    if torch.backends.mps.is_available():
        found.append(torch.device("mps"))
    return {str(device): device_name(device) for device in found}


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's, which on Apple silicon contains the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def cpu_name() -> str:
    """The processor's name as reported by the system."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def busy_cpu_seconds() -> float:
    """CPU seconds of all processes and of the hypervisor since boot."""
    times = psutil.cpu_times()._asdict()
    kinds = ("user", "nice", "system", "irq", "softirq", "steal")
    return float(sum(times.get(kind, 0.0) for kind in kinds))


def on_battery() -> bool:
    """Whether this machine runs on battery power, where that is known."""
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return battery is not None and battery.power_plugged is False


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
