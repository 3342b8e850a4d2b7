"""Commands on hostile files, in forked processes, so that thousands of them take minutes.

This file is a program too: it does the job that its first word describes.
"""

import json
import os
import re
import resource
import signal
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forks import Forked, Forks

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


class Jobs:
    """Does jobs, each in a process that is forked."""

    def __init__(self, forks: "Forks", cache: Path) -> None:
        self._forks, self._cache = forks, cache

    def run(self, job: Job) -> Outcome:
        """Do a job."""
        with tempfile.TemporaryDirectory() as folder:
            report, output = Path(folder, "report"), Path(folder, "output")
            words = [Path(__file__), json.dumps(asdict(job)), report]
            environment = {**os.environ, "FLASHMORE_CACHE": job.cache or str(self._cache)}
            with output.open("wb") as out, Path(os.devnull).open() as nothing:
                streams = (nothing.fileno(), out.fileno(), out.fileno())
                forked = self._forks.start(words, environment, streams, Path(job.folder))
            hung = not _wait(forked, job.kill_after_s)
            ended = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
            printed = output.read_bytes()
        codes = tuple(each["code"] for each in ended)
        bounds = [0, *(each["printed"] for each in ended)]
        texts = tuple(printed[a:b].decode(errors="replace") for a, b in pairwise(bounds))
        ended_by = -1 if hung else max(0, -forked.wait())
        operations = ended[-1]["operations"] if ended else 0
        text = printed.decode(errors="replace")
        return Outcome(codes, ended_by, text, texts, forked.peak_mib, forked.cpu_s, operations)


def _wait(forked: "Forked", kill_after_s: float | None) -> bool:
    """Wait for its end, and kill it when its time has come or it takes too much; False if it hung."""
    began = time.monotonic()
    killed = hung = False
    while not forked.ended(0.001):
        elapsed = time.monotonic() - began
        hung = hung or elapsed > WALL_SECONDS
        over = hung or (kill_after_s is not None and elapsed > kill_after_s)
        if not killed and (over or _resident_mib(forked.pid) > 2 * LARGEST_MIB):
            os.kill(forked.pid, signal.SIGKILL)
            killed = True
    return not hung


def _resident_mib(process: int) -> float:
    """Its resident set; 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    except (OSError, IndexError):
        return 0.0


def _act(job: Job, report: Path) -> None:
    """The child: run the commands and end."""
    warnings.simplefilter("ignore")
    told = report.open("w")
    # A command that never ends is stopped here, after more than it may take.
    resource.setrlimit(resource.RLIMIT_CPU, (2 * LARGEST_CPU_S, 3 * LARGEST_CPU_S))
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
            sys.stderr.flush()
            printed = os.lseek(1, 0, os.SEEK_CUR)
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
        read = (opened.settings, opened.read_metrics(), opened.read_result(), opened.load_state())
        weights = [(name, value.tolist()) for name, value in opened.load_weights().items()]
    except FlashmoreError as error:
        sys.stdout.write(ascii(f"wanted: {error}"))
        return error.exit_code
    told = repr((read[0], [line.get("loss") for line in read[1]], weights))
    sys.stdout.write(hashlib.sha256(told.encode()).hexdigest())
    return 0


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    _act(Job(**{**given, "commands": tuple(map(tuple, given["commands"]))}), Path(sys.argv[2]))
