"""How the upgrade starts Python processes of its own: what they import is installed, and nothing else.

`-I` keeps the working directory, `PYTHONPATH` and the other `PYTHON…` variables out. It hides the user's own
site-packages too, which may be where torch is installed: there `-E -P` does the same without hiding them.
"""

import importlib.metadata
import importlib.util
import os
import signal
import site
import sys
from pathlib import Path
from types import ModuleType

_NEEDED = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "HOME", "TEMP", "TMP", "TMPDIR")
"""Variables without which Python or torch's shared libraries are not found."""


def command(module: str, *arguments: str) -> list[str]:
    """A command that runs one of our modules with the packages that are installed."""
    flags = ["-EP"] if site.ENABLE_USER_SITE else ["-I"]
    return [sys.executable, *flags, "-m", module, *arguments]


def end_with_parent(parent: int) -> None:
    """Let the system kill this process when the one that started it has ended, however that came about.

    What ends by SIGKILL cannot end its children. Only Linux offers this; elsewhere nothing happens.

    Args:
        parent: the process that started this one.
    """
    if sys.platform != "linux":
        return
    import ctypes

    set_parent_death_signal = 1  # PR_SET_PDEATHSIG in linux/prctl.h
    ctypes.CDLL(None).prctl(set_parent_death_signal, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:  # it ended before that was set
        os.kill(os.getpid(), signal.SIGKILL)


def environment() -> dict[str, str]:
    """The variables of a process that runs nothing of the user's: one thread, no GPU, no settings."""
    kept = {name: os.environ[name] for name in _NEEDED if name in os.environ}
    # Threads that a library starts while it is imported do not survive a fork.
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return kept | one | {"CUDA_VISIBLE_DEVICES": ""}


def installed(name: str) -> ModuleType:
    """Import a package that belongs to an installed distribution of the same name.

    Raises:
        ImportError: no such distribution is installed, or the name leads to a file of somebody else.
    """
    spec = importlib.util.find_spec(name)
    try:
        own = Path(str(importlib.metadata.distribution(name).locate_file(f"{name}/__init__.py")))
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(f"{name} is not installed") from None
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != own.resolve():
        raise ImportError(f"{name} is not imported from the installed distribution")
    return importlib.import_module(name)
