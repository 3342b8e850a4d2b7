"""Commands as a user gives them: in a process of their own, or in this one where a process adds nothing."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryFile
from typing import Any

import pytest

from flashmore.cli.main import main
from flashmore.config import TrainConfig
from flashmore.errors import Interrupted
from flashmore.runs import Run
from flashmore.training.loop import Observer, train
from flashmore.upgrade.verify.verifier import Verifier
from forks import Forks

NAMES = tuple(map("".join, product("bdmnrst", "aeio", ("n", "ra", "la", "m", "lo"))))
PARTS = re.compile(r"wanted: (.+)\n found: (.+)\n valid: (.+)\n")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A plain environment, in which a warning is an error."""
    odd = ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "PYTHONUNBUFFERED")
    ours = {name: value for name, value in os.environ.items() if name not in odd}
    cache = str(tmp_path_factory.mktemp("cache"))
    return ours | {"PYTHONWARNINGS": "error", "FLASHMORE_CACHE": cache}


@pytest.fixture(autouse=True)
def plain_here(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for the commands that run in this process."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("FLASHMORE_CACHE", environment["FLASHMORE_CACHE"])


@pytest.fixture(scope="session")
def process(environment: dict[str, str], forks: Forks) -> Callable[..., CompletedProcess[str]]:
    """Run a command as a process of its own: stdout, stderr and exit code apart.

    It is forked, unless something else changes in the environment than the encoding of stdout: libraries read
    that when they are imported.
    """

    def run(*words: object, **changes: str) -> CompletedProcess[str]:
        if changes.keys() <= {"PYTHONIOENCODING"}:
            return forks.run(("-m", "flashmore", *words), environment | changes)
        command = [sys.executable, "-m", "flashmore", *map(str, words)]
        return subprocess.run(
            command,
            env=environment | changes,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=300,
        )

    return run


@pytest.fixture(scope="session")
def on_a_terminal(environment: dict[str, str], forks: Forks) -> Callable[..., tuple[int, str]]:
    """Run a command with a terminal for stdin, and for stdout and stderr unless they are `piped`.

    It gives the exit code and everything that was printed.
    """
    fcntl, pty, termios = (pytest.importorskip(name, reason="Unix") for name in ("fcntl", "pty", "termios"))

    def run(*words: object, columns: int = 80, piped: bool = False, **changes: str) -> tuple[int, str]:
        variables = environment | {"TERM": "xterm-256color"} | changes
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        with TemporaryFile() as file:
            shown = file.fileno() if piped else theirs
            forked = forks.start(("-m", "flashmore", *words), variables, (theirs, shown, shown))
            os.close(theirs)
            printed = b""
            with suppress(OSError):  # how Linux says that the other end is closed
                while piece := os.read(ours, 65536):
                    printed += piece
            os.close(ours)
            code = forked.wait()
            file.seek(0)
            return code, (file.read() if piped else printed).decode()

    return run


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., CompletedProcess[str]]:
    """Run a command in this process; what it prints, warns and returns is what a process would.

    The process that judges rewrites is the same for all of them; it knows nothing of the commands before.
    """
    monkeypatch.setattr("flashmore.cli.upgrade.Verifier", lambda: nullcontext(verifier))

    def run(*words: object) -> CompletedProcess[str]:
        verifier.known.clear()
        verifier.spent.clear()
        capsys.readouterr()
        given = [str(word) for word in words]
        code = main(given)
        return CompletedProcess(given, code, *capsys.readouterr())

    return run


@pytest.fixture
def document(call: Callable[..., CompletedProcess[str]]) -> Callable[..., Any]:
    """Run a command with --json that must succeed; stdout must be one JSON document."""

    def run(*words: object) -> Any:
        done = call(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def refusal() -> Callable[..., str]:
    """Check that a command ended with an exit code and one message in three parts; give the message."""

    def check(done: CompletedProcess[str], code: int, *, after_progress: bool = False) -> str:
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        found = PARTS.search(done.stderr)
        assert found, f"no message in three parts: {done.stderr!r}"
        assert found.end() == len(done.stderr), "something follows the message"
        if not after_progress:
            assert found.start() == 0, f"something precedes the message: {done.stderr!r}"
            assert done.stdout == ""
        return found.group()

    return check


@pytest.fixture(scope="session")
def plain() -> Callable[[str], bool]:
    """Whether a text holds no control characters but the ends of lines."""
    return lambda text: CONTROL.search(text.replace("\n", "")) is None


@pytest.fixture(scope="session")
def names_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("names") / "names.txt"
    path.write_text("\n".join(NAMES), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def config(names_file: Path) -> TrainConfig:
    return TrainConfig(
        file=names_file,
        model="mlp",
        n_embd=16,
        learning_rate=2e-2,
        warmup_steps=5,
        max_steps=60,
        eval_interval=20,
        ngram_smoothing=0.4,
        seed=3405,
        device="cpu",
    )


@pytest.fixture(scope="session")
def trained(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on names of 2 or 4 letters, best before its last step; leave it as it is."""
    path = tmp_path_factory.mktemp("runs") / "trained"
    train(config, path)
    state = Run.open(path).load_state()
    assert state.best_step != state.step
    return path


@pytest.fixture(scope="session")
def unfinished(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that Ctrl-C stopped before its first evaluation."""

    class PressCtrlC(Observer):
        def stepped(self, step: int, loss: float, step_ms: float, characters_per_s: float) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    path = tmp_path_factory.mktemp("runs") / "unfinished"
    with pytest.raises(Interrupted):
        train(replace(config, model="bigram"), path, PressCtrlC())
    return path


@pytest.fixture
def quick(names_file: Path) -> tuple[object, ...]:
    """The words of the quickest training there is."""
    return ("train", names_file, "--model", "bigram", "--max-steps", 4, "--device", "cpu")


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder, to see that nothing was lost or left."""
    return lambda folder: {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "run.lock"
    }
