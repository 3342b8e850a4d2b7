"""Commands in forked processes: torch is imported once, so that thousands of them take minutes.

This file is a program too: `python forks.py` reads one JSON job a line and answers each with one JSON line.
"""

import gc
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from io import StringIO
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

FILE_OPERATIONS = frozenset(
    ("open", "write", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "truncate", "close")
)
"""Built-in functions before each of which a process may be killed."""
WALL_SECONDS = 60.0
"""A child that takes longer hangs, however loaded the machine is."""
LARGEST_MIB, LARGEST_CPU_S = 1024, 10
"""What commands on a hostile file may take together."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Job:
    """What a forked process does.

    Args:
        commands: words after `flashmore`, of one command after the other.
        folder: its working directory.
        kill_at: it is killed before its file operation of this number, counted from 0.
        kill_after_s: it is killed after so many seconds.
        cache: its folder of measured choices; None for one that all share.
    """

    commands: tuple[tuple[str, ...], ...]
    folder: str
    kill_at: int | None = None
    kill_after_s: float | None = None
    cache: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How it ended."""

    codes: tuple[int, ...]
    """Exit code of each command that ended."""
    signal: int
    """That ended the process; 0 for none, -1 for one that hung."""
    text: str
    """What was printed on stdout and stderr."""
    texts: tuple[str, ...]
    """The same, by each command that ended."""
    peak_mib: float
    """Largest resident set."""
    cpu_s: float
    """Processor time, which another load on the machine does not change."""
    operations: int
    """File operations that were counted."""

    def require_harmless(self, commands: int, case: str) -> None:
        """Every command ended with what was asked for, or with a message, and took no more than it may."""
        case = f"{case}: {replace(self, text=self.text[-700:], texts=())}"
        assert self.signal == 0, case
        assert len(self.codes) == commands, case
        assert set(self.codes) <= {0, 1, 2}, case
        assert self.text.count("wanted: ") >= sum(code != 0 for code in self.codes), case
        assert "Traceback" not in self.text, case
        assert not CONTROL.search(self.text), case
        assert self.peak_mib < LARGEST_MIB, case
        assert self.cpu_s < LARGEST_CPU_S, case


class Forks:
    """A process that forks one child for each job; use it as a context."""

    def __enter__(self) -> Self:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        return self

    def run(self, job: Job) -> Outcome:
        """Do a job."""
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(json.dumps(asdict(job)) + "\n")
        self._server.stdin.flush()
        answer: dict[str, Any] = json.loads(self._server.stdout.readline())
        return Outcome(**{**answer, "codes": tuple(answer["codes"]), "texts": tuple(answer["texts"])})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.communicate()


def _serve() -> None:
    with tempfile.TemporaryDirectory() as cache:
        os.environ["FLASHMORE_CACHE"] = cache
        _import_everything()
        gc.freeze()
        _answer()


def _answer() -> None:
    for line in sys.stdin:
        given = json.loads(line)
        job = Job(**{**given, "commands": tuple(map(tuple, given["commands"]))})
        sys.stdout.write(json.dumps(asdict(_fork(job))) + "\n")
        sys.stdout.flush()


def _import_everything() -> None:
    """Run commands once, so that the children find every module that they use."""
    from flashmore.cli.main import main

    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        names = Path(folder, "names.txt")
        names.write_text("anna\nben\ncleo\ndora\n" * 20)
        for run, words in (("items", ["--model", "mlp"]), ("text", ["--mode", "text", "--block-size", "4"])):
            out = str(Path(folder, run))
            main(["train", str(names), *words, "--max-steps", "2", "--device", "cpu", "--out", out])
            main(["generate", out, "--json"])
        items, record = str(Path(folder, "items")), str(Path(folder, "record.json"))
        main(["score", items, "anna"])
        main(["compare", items, "--picture", str(Path(folder, "names.png"))])
        main(["explain", "--run", out])
        main(["choose", "--length", "2", "--device", "cpu", "--out", record])
        main(["report", record, "--out", str(Path(folder, "report.html"))])


def _fork(job: Job) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        report, output = Path(folder, "report"), Path(folder, "output")
        child = os.fork()
        if not child:
            _act(job, report, output)
        status, usage = _wait(child, job.kill_after_s)
        ended = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
        codes = tuple(each["code"] for each in ended)
        bounds = [0, *(each["printed"] for each in ended)]
        printed = output.read_bytes() if output.exists() else b""
        texts = tuple(printed[a:b].decode(errors="replace") for a, b in pairwise(bounds))
        ended_by = -1 if status is None else max(0, -os.waitstatus_to_exitcode(status))
        cpu_s = usage.ru_utime + usage.ru_stime
        operations = ended[-1]["operations"] if ended else 0
        text = printed.decode(errors="replace")
        return Outcome(codes, ended_by, text, texts, usage.ru_maxrss / 1024, cpu_s, operations)


def _wait(child: int, kill_after_s: float | None) -> tuple[int | None, resource.struct_rusage]:
    began = time.monotonic()
    killed = hung = False
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return (None if hung else status), usage
        elapsed = time.monotonic() - began
        hung = hung or elapsed > WALL_SECONDS
        over = hung or (kill_after_s is not None and elapsed > kill_after_s)
        if not killed and (over or _resident_mib(child) > 2 * LARGEST_MIB):
            os.kill(child, signal.SIGKILL)
            killed = True
        time.sleep(0.001)


def _resident_mib(process: int) -> float:
    """Its resident set; 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    except (OSError, IndexError):
        return 0.0


def _act(job: Job, report: Path, output: Path) -> None:
    """The child: run the commands and end."""
    written = os.open(output, os.O_WRONLY | os.O_CREAT)
    for number in (1, 2):
        os.dup2(written, number)
    told = report.open("w")
    os.chdir(job.folder)
    # A command that never ends is stopped here, after more than it may take.
    resource.setrlimit(resource.RLIMIT_CPU, (2 * LARGEST_CPU_S, 3 * LARGEST_CPU_S))
    if job.cache is not None:
        os.environ["FLASHMORE_CACHE"] = job.cache
    counted = 0

    def count(frame: object, event: str, function: Any) -> None:
        nonlocal counted
        if event == "c_call" and function.__name__ in FILE_OPERATIONS:
            if counted == job.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            counted += 1

    import traceback

    from flashmore.cli.main import main

    try:
        for words in job.commands:
            sys.setprofile(count)
            code = _library(words[1]) if words[0] == "library" else main(words)
            sys.setprofile(None)
            sys.stdout.flush()
            printed = os.lseek(written, 0, os.SEEK_CUR)
            told.write(json.dumps({"code": code, "operations": counted, "printed": printed}) + "\n")
            told.flush()
    except BaseException:  # noqa: BLE001
        sys.setprofile(None)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(70)
    os._exit(0)


def _library(run: str) -> int:
    """Read all of a run through the library, and print a digest of it."""
    import hashlib

    from flashmore.errors import FlashmoreError
    from flashmore.runs import Run

    try:
        opened = Run.open(run)
        read = (opened.settings, opened.read_metrics(), opened.read_result(), opened.load_state("last"))
        weights = [(name, value.tolist()) for name, value in opened.load_weights().items()]
    except FlashmoreError as error:
        sys.stdout.write(ascii(f"wanted: {error}"))
        return error.exit_code
    told = repr((read[0], [line.get("loss") for line in read[1]], weights))
    sys.stdout.write(hashlib.sha256(told.encode()).hexdigest())
    return 0


if __name__ == "__main__":
    _serve()
