"""The process of a command: handling of Ctrl-C and of closed standard streams.

It imports nothing slow, so that the Ctrl-C handler is installed first.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from flashmore.files import cache_folder
from flashmore.ranks import be_silent, rank, world_size

INTERRUPTED = 130
MOST_PROCESSES = 1000
"""Processes that are looked at to tell whether the machine is busy: 40 µs each."""
_pressed = False


def entry() -> NoReturn:
    """Run the command of this process and exit with its exit code."""
    _open_missing_streams()
    if rank():
        be_silent()
    if sys.argv[1:2] != ["upgrade"]:  # whose --run starts a program that may need its own folder
        # PyTorch's compiler starts Python with -c, which imports from the working directory.
        os.environ["PYTHONSAFEPATH"] = "1"
    # PyTorch's default is in the folder for temporary files, where another user may create it first.
    temporary = None if "TORCHINDUCTOR_CACHE_DIR" in os.environ else _set_compiler_cache()
    # libgomp's threads spin for milliseconds by default, which keeps the threads that they wait for off the
    # CPUs of a busy machine: steps took 25 times as long. On an idle one 3000 turns are as fast as 300,000.
    if "OMP_WAIT_POLICY" not in os.environ and sys.argv[1:2] != ["upgrade"]:
        os.environ.setdefault("GOMP_SPINCOUNT", "100" if _is_busy() else "3000")
    # Shells start background commands with Ctrl-C ignored, which is kept.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _report_unraisable
    try:
        from flashmore.cli.main import main

        code = main()
    except BaseException as error:
        # An interrupted import or C function may raise anything.
        if not _pressed or isinstance(error, SystemExit):
            raise
        _end_at_once()
    finally:
        if signal.getsignal(signal.SIGINT) is _interrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # only Python's shutdown is left
        if temporary is not None:
            import shutil

            shutil.rmtree(temporary, ignore_errors=True)
    if world_size() > 1:  # threads of torch.distributed may abort Python's shutdown
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _set_compiler_cache() -> str | None:
    """Set the folder of PyTorch's compiler, which importing it creates.

    Returns:
        A temporary one, to be removed at the end, if the user's cache cannot be written.
    """
    temporary = None
    with suppress(OSError):
        cache = cache_folder()
        if cache is not None:
            path = cache / "torchinductor"
            above = next(each for each in (path, *path.parents) if os.access(each, os.F_OK))
            if above.is_dir() and os.access(above, os.W_OK | os.X_OK):
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(path.absolute())
                return None
        import tempfile

        os.environ["TORCHINDUCTOR_CACHE_DIR"] = temporary = tempfile.mkdtemp(prefix="flashmore-")
    return temporary


def _is_busy() -> bool:
    """Whether other threads of this machine want a CPU, at three moments; False where Linux does not tell.

    Those with a lower priority than usual do not count: one such is our own compiler in the background.
    """
    for _ in range(3):
        try:
            running = Path("/proc/loadavg").read_text(encoding="ascii").split()[3].partition("/")[0]
        except (OSError, IndexError):
            return False
        if int(running) <= 1 or not any(map(_wants_cpu, _threads())):  # this thread
            return False
        time.sleep(0.005)
    return True


def _threads() -> Iterator[Path]:
    """Folders of the threads of other processes, those of the newest processes first."""
    numbers = (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdecimal())
    for number in sorted(numbers, reverse=True)[:MOST_PROCESSES]:
        if number != os.getpid():
            with suppress(OSError):  # it has ended
                yield from Path(f"/proc/{number}/task").iterdir()


def _wants_cpu(thread: Path) -> bool:
    """Whether a thread runs or waits for a CPU, with at least the usual priority."""
    with suppress(OSError, ValueError, IndexError):  # it has ended, or this is another kind of /proc
        state, *numbers = (thread / "stat").read_text(errors="replace").rpartition(") ")[2].split()  # proc(5)
        return state == "R" and int(numbers[15]) <= 0
    return False


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt once; a second Ctrl-C ends the process immediately."""
    global _pressed
    if _pressed:
        _end_at_once()
    _pressed = True
    raise KeyboardInterrupt


def _end_at_once() -> NoReturn:
    helpers = sys.modules.get("multiprocessing")
    for child in helpers.active_children() if helpers else ():
        child.kill()
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(INTERRUPTED)


def _report_unraisable(failure: "sys.UnraisableHookArgs") -> None:
    """End the process on a Ctrl-C in a destructor or callback, where it cannot be raised."""
    if issubclass(failure.exc_type, KeyboardInterrupt):
        _end_at_once()
    sys.__unraisablehook__(failure)


def _open_missing_streams() -> None:
    """Replace a closed stdin, stdout or stderr.

    Otherwise the next opened file would get its file descriptor, and receive printed output.
    """
    # stdout is opened for reading, so that it then refuses to be written.
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
