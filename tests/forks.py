"""Programs in forked processes: torch is imported once, so that each of them starts in milliseconds.

This file is a program too: it forks a child for each request that it reads from a socket.
"""

import atexit
import gc
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, suppress
from importlib import import_module
from io import StringIO
from pathlib import Path
from select import select
from subprocess import CompletedProcess
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, Self

LATE = ("dulwich.repo", "matplotlib.figure", "rapidfuzz.process", "re2", "torch.utils.tensorboard")
"""What is large and imported inside functions of other packages, or of ours."""
SECONDS = 300.0
"""A process that takes longer hangs, however loaded the machine is."""


class Forked:
    """A process that was forked."""

    def __init__(self, answers: Any) -> None:
        self._answers = answers
        self.pid: int = json.loads(answers.readline())
        self.returncode: int | None = None
        self.peak_mib = self.cpu_s = 0.0

    def ended(self, seconds: float) -> bool:
        """Wait so long, or until it ended."""
        if self.returncode is None and select([self._answers], [], [], seconds)[0]:
            self.returncode, self.peak_mib, self.cpu_s = json.loads(self._answers.readline())
            self._answers.close()
        return self.returncode is not None

    def wait(self) -> int:
        """Its exit code, or the negative number of the signal that ended it."""
        if not self.ended(SECONDS):
            os.kill(self.pid, signal.SIGKILL)
            raise TimeoutError
        assert self.returncode is not None
        return self.returncode


class Forks:
    """The process that forks; use it as a context."""

    def __enter__(self) -> Self:
        ours, theirs = socket.socketpair()
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"},
                start_new_session=True,  # Ctrl-C is for those who ask
            )
        self._socket = ours
        self._last: Forked | None = None
        return self

    def start(
        self,
        words: Sequence[object],
        environment: Mapping[str, str],
        streams: tuple[int | None, int | None, int | None],
        folder: Path | None = None,
        *,
        beside: bool = False,
    ) -> Forked:
        """Start Python with these words, `-m module …` or `program.py …`, and these standard streams.

        A stream that is None is closed. The process before is killed, unless it was to run `beside` others.
        """
        if self._last is not None and self._last.returncode is None:
            os.kill(self._last.pid, signal.SIGKILL)
            self._last.wait()
        given = {number: stream for number, stream in enumerate(streams) if stream is not None}
        request = json.dumps(
            [[*map(str, words)], dict(environment), str(folder or Path.cwd()), [*given], beside]
        )
        ours, theirs = os.pipe()
        socket.send_fds(self._socket, [request.encode() + b"\n"], [theirs, *given.values()])
        os.close(theirs)
        forked = Forked(open(ours, "rb", buffering=0))  # noqa: PTH123, SIM115 - which select can ask
        self._last = None if beside else forked
        return forked

    def run(
        self,
        words: Sequence[object],
        environment: Mapping[str, str],
        folder: Path | None = None,
        stdout: int | None = None,
        stdin: bytes = b"",
    ) -> CompletedProcess[str]:
        """Run it to its end and take what it prints (what is not UTF-8, escaped), or give it a stdout."""
        with TemporaryFile() as given, TemporaryFile() as out, TemporaryFile() as err:
            given.write(stdin)
            given.seek(0)
            to = out.fileno() if stdout is None else stdout
            code = self.start(words, environment, (given.fileno(), to, err.fileno()), folder).wait()
            out.seek(0)
            err.seek(0)
            printed, told = (file.read().decode(errors="surrogateescape") for file in (out, err))
            return CompletedProcess([*map(str, words)], code, printed, told)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._server.wait()


def _serve(requests: socket.socket) -> None:
    """Answer requests; in a child, return when it has become what was asked for."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _import_everything()
    gc.freeze()
    while True:
        text, descriptors, *_ = socket.recv_fds(requests, 2**20, 4)
        while text and not text.endswith(b"\n"):
            text += requests.recv(2**20)
        if not text:
            os._exit(0)
        words, environment, folder, numbers, beside = json.loads(text)
        answers, *streams = descriptors
        if not beside or not _fork():  # to wait for it, which takes a process of its own beside others
            if _fork_and_tell(answers, streams):
                requests.close()
                _become(words, environment, folder, dict(zip(numbers, streams, strict=True)))
                return
            if beside:
                os._exit(0)
        else:
            for descriptor in streams:
                os.close(descriptor)
        os.close(answers)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # those whose children have ended
                pass


def _fork() -> int:
    """As `os.fork`, which fails for a moment where other programs leave no room for a process."""
    for _ in range(600):
        with suppress(BlockingIOError):
            return os.fork()
        time.sleep(0.1)
    return os.fork()


def _fork_and_tell(answers: int, streams: Sequence[int]) -> bool:
    """Fork a child and return True in it; this process tells how it ends."""
    child = _fork()
    if not child:
        os.close(answers)
        return True
    for descriptor in streams:  # so that readers see the end of what the child writes
        os.close(descriptor)
    os.write(answers, b"%d\n" % child)
    _, status, usage = os.wait4(child, 0)
    ended = os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime
    os.write(answers, json.dumps(ended).encode() + b"\n")
    return False


def _import_everything() -> None:
    """What commands import when they need it."""
    import flashmore

    for module in pkgutil.walk_packages(flashmore.__path__, "flashmore."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    for name in LATE:
        with suppress(ImportError):
            import_module(name)
    from flashmore.cli.main import main

    with redirect_stderr(StringIO()):  # the parser imports half of itself when it parses
        main(["score", "nowhere", "anna"])


def _become(words: list[str], environment: dict[str, str], folder: str, streams: Mapping[int, int]) -> None:
    """Make this process look as if Python had just started."""
    for number in range(3):
        os.close(number)
    for number, descriptor in streams.items():
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    lines = 1 if os.isatty(1) else -1
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "utf-8").partition(":")
    sys.stdin = sys.stdout = sys.stderr = None
    if 0 in streams:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if 1 in streams:
        sys.stdout = open(1, "w", lines, encoding=encoding, errors=errors or None, closefd=False)  # noqa: SIM115
    if 2 in streams:
        sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv[:] = words


def _run() -> None:
    """What `python` does with sys.argv."""
    try:
        if sys.argv[0] == "-m":
            sys.argv.pop(0)
            sys.path[0] = str(Path.cwd())
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = str(Path(sys.argv[0]).absolute().parent)
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code or 0
        assert isinstance(code, int)
    else:
        code = 0
    # Python would take every module apart, which takes longer than most commands.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
    _run()  # outside of everything that serves
