"""`flashmore env`: versions, devices and cache folders, for a bug report."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from packaging.requirements import Requirement

from flashmore.cli.parse import command
from flashmore.cli.show import stdout, table
from flashmore.files import cache_folder
from flashmore.terminal import write_json

EXTRAS = ("tensorboard", "parquet", "hf", "onnx", "gguf")
"""The extras whose packages flashmore uses; the others are for its development."""


@command("env")
def main(*, json: bool = False) -> int:
    """Print the versions, the devices and the cache folders of this installation, for a bug report.

    Args:
        json: Print the result to stdout as JSON, and nothing else.
    """
    found = _environment()
    if json:
        write_json(found)
        return 0
    rows = table("", "")
    for name, value in _rows(found):
        rows.add_row(name, value)
    stdout().print(rows)
    return 0


def _environment() -> dict[str, Any]:
    """The environment as a record of a measurement describes it, and what else a bug report needs."""
    from flashmore.measuring.environment import devices, environment
    from flashmore.training.resolve import resolve_device
    from flashmore.training.trackers import TRACKERS

    cache = cache_folder()
    return {
        "flashmore": version("flashmore"),
        "packages": _versions([*_required(), "triton", *TRACKERS]),
        "environment": environment(resolve_device("auto")),
        "devices": devices(),
        "caches": {
            "flashmore": None if cache is None else str(cache),
            "torchinductor": os.environ.get("TORCHINDUCTOR_CACHE_DIR"),
        },
    }


def _required() -> Iterator[str]:
    """The packages that flashmore's own metadata names, required ones first."""
    for requirement in map(Requirement, requires("flashmore") or ()):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *EXTRAS)):
            yield requirement.name


def _versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of the packages that are installed."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _rows(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    here = found["environment"]
    yield "flashmore", found["flashmore"] + (f" ({here['commit']})" if here["commit"] else "")
    yield "Python", here["python"]
    yield from found["packages"].items()
    yield "CUDA", here["cuda"] or "not in this build of torch"
    yield "system", here["os"]
    yield "CPU", f"{here['cpu_name']}, {here['cpu_count']} logical CPUs; threads of torch: {here['threads']}"
    yield "memory", f"{here['memory_bytes'] / 2**30:.1f} GiB"
    for device, name in found["devices"].items():
        yield device, name + (" (default)" if device.partition(":")[0] == here["device"] else "")
    yield "cache", found["caches"]["flashmore"] or "none: there is no home directory"
    yield "torch.compile", found["caches"]["torchinductor"] or "PyTorch's default folder"
