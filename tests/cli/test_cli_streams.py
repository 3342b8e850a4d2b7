"""Commands whose output nobody takes, whose terminal closes, and that are interrupted again and again."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE, CompletedProcess
from tempfile import TemporaryFile

import pytest

from flashmore.runs import Run
from forks import Forks

pty = pytest.importorskip("pty", reason="needs the terminals and signals of Unix")

LONG = (
    "--model",
    "mlp",
    "--n-embd",
    "16",
    "--max-steps",
    "1000000",
    "--log-interval",
    "1",
    "--device",
    "cpu",
)
AT_ONCE = ("--speedups", "none")
"""Without the compiler, for which so many steps would wait first."""
FULL = "/dev/full"


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Start a command, through a shell's redirections where they are given; it is ended with the test."""
    started = []

    def begin(*words: object, redirections: str = "", **options: object) -> "subprocess.Popen[bytes]":
        command = ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-m", "flashmore"]
        options = {"env": environment, **options}
        process = subprocess.Popen([*command, *map(str, words)], **options)  # type: ignore[call-overload]
        started.append(process)
        return process  # type: ignore[no-any-return]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run(environment: dict[str, str], forks: Forks) -> Callable[..., CompletedProcess[str]]:
    """Run a command whose streams are files or, where they are None, closed."""

    def to_end(*words: object, **given: str | None) -> CompletedProcess[str]:
        with ExitStack() as opened:
            nothing = opened.enter_context(Path(os.devnull).open())
            out, err = (opened.enter_context(TemporaryFile()) for _ in range(2))
            streams: dict[str, int | None] = {
                "stdin": nothing.fileno(),
                "stdout": out.fileno(),
                "stderr": err.fileno(),
            }
            for name, path in given.items():
                streams[name] = opened.enter_context(Path(path).open("wb")).fileno() if path else None
            stdin, stdout, stderr = streams.values()
            forked = forks.start(("-m", "flashmore", *words), environment, (stdin, stdout, stderr))
            code = forked.wait()
            for file in (out, err):
                file.seek(0)
            return CompletedProcess([*map(str, words)], code, out.read().decode(), err.read().decode())

    return to_end


def wait_until(holds: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 300
    while not holds():
        assert process.poll() is None, "it ended"
        assert time.monotonic() < deadline, "nothing happens"
        time.sleep(0.005)


def trains(run: Path) -> bool:
    metrics = run / "metrics.jsonl"
    return metrics.exists() and metrics.stat().st_size > 0


@pytest.mark.parametrize("stderr", [FULL, None])
def test_progress_that_cannot_be_shown_stops_no_training(
    stderr: str | None,
    quick: tuple[object, ...],
    run: Callable[..., CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    done = run(*quick, "--json", "--out", tmp_path / "run", stderr=stderr)
    assert done.returncode == 0
    assert done.stdout.startswith("{")
    assert Run.open(tmp_path / "run").load_state().step == 4


@pytest.mark.parametrize("streams", [{"stdout": FULL}, {"stdout": None}, {"stdout": None, "stdin": None}])
def test_a_result_that_cannot_be_shown_is_told_and_kept(
    streams: dict[str, str | None],
    quick: tuple[object, ...],
    run: Callable[..., CompletedProcess[str]],
    refusal: Callable[..., str],
    tmp_path: Path,
) -> None:
    done = run(*quick, "--out", tmp_path / "run", **streams)
    assert "to finish the command" in refusal(done, 1, after_progress=True)
    assert Run.open(tmp_path / "run").read_result() is not None


def test_streams_that_a_shell_closes_are_told(
    names_file: Path, start: Callable[..., "subprocess.Popen[bytes]"], refusal: Callable[..., str]
) -> None:
    process = start("look", names_file, redirections=">&- <&-", stderr=PIPE)
    _, err = process.communicate(timeout=300)
    done = CompletedProcess((), process.returncode, "", err.decode())
    assert "to finish the command" in refusal(done, 1)


@pytest.mark.parametrize(
    "streams",
    [{"stdout": FULL}, {"stdout": None}, {"stdout": None, "stderr": None}, {"stdout": FULL, "stderr": FULL}],
)
def test_generation_that_cannot_be_shown_ends_with_a_code(
    streams: dict[str, str | None], trained: Path, run: Callable[..., CompletedProcess[str]]
) -> None:
    done = run("generate", trained, "--count", "3", **streams)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_a_reader_that_left_stops_no_training(
    quick: tuple[object, ...], environment: dict[str, str], forks: Forks, tmp_path: Path
) -> None:
    ours, theirs = os.pipe()
    forked = forks.start(
        ("-m", "flashmore", *quick, "--out", tmp_path / "run"), environment, (None, theirs, theirs)
    )
    os.close(theirs)
    os.close(ours)
    assert forked.wait() == 1
    assert Run.open(tmp_path / "run").read_result() is not None


def test_a_terminal_that_closes_leaves_a_saved_run(
    names_file: Path, start: Callable[..., "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ours, theirs = pty.openpty()
    terminal = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True}
    process = start("train", names_file, *LONG, *AT_ONCE, "--out", run, **terminal)
    os.close(theirs)
    wait_until(lambda: bool(os.read(ours, 65536)) and trains(run), process)
    os.close(ours)
    process.send_signal(signal.SIGHUP)  # the kernel sends it to what has a terminal that it controls
    assert process.wait(timeout=300) == 130
    steps = [line["step"] for line in Run.open(run).read_metrics()]
    assert Run.open(run).load_state().step == steps[-1] > 0


def test_what_ignores_the_end_of_its_terminal_goes_on(
    names_file: Path, start: Callable[..., "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        process = start("train", names_file, *LONG, *AT_ONCE, "--out", run, stdout=PIPE, stderr=PIPE)
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_until(lambda: trains(run), process)
    process.send_signal(signal.SIGHUP)
    size = (run / "metrics.jsonl").stat().st_size
    wait_until(lambda: (run / "metrics.jsonl").stat().st_size > size + 1000, process)


COMMANDS = {
    "train": ("train", "{names}", *LONG, "--out", "{folder}/run"),
    "generate": ("generate", "{trained}", "--count", "100000", "--repeats"),
    "bench step": ("bench", "step", "--lengths", "8"),
    "choose": ("choose", "--length", "512", "--batch-size", "32"),
}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc to see what a process does")
@pytest.mark.parametrize(
    ("command", "moment"), [("train", "importing"), *((command, "running") for command in COMMANDS)]
)
def test_twenty_times_ctrl_c_shows_no_traceback(
    command: str,
    moment: str,
    names_file: Path,
    trained: Path,
    start: Callable[..., "subprocess.Popen[bytes]"],
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    chance = random.Random(command)
    # Python drops this warning by default: Ctrl-C may leave a file open that a library just opened.
    environment = environment | {"PYTHONWARNINGS": "error,ignore::ResourceWarning"}
    places = {"names": names_file, "folder": tmp_path / moment, "trained": trained}
    words = [word.format(**places) for word in COMMANDS[command]]
    process = start(*words, stdout=PIPE, stderr=PIPE, cwd=tmp_path, env=environment)
    maps = Path(f"/proc/{process.pid}/maps")
    wait_until(lambda: "libtorch" in maps.read_text(), process)
    if moment == "running":
        time.sleep(chance.uniform(1, 3))
    for _ in range(20):
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(chance.uniform(0, 0.05))
    out, err = process.communicate(timeout=300)
    assert process.returncode in (0, 130, -signal.SIGINT), err.decode()
    for shown in (out, err):
        assert b"Traceback" not in shown, err.decode()
        assert b"Exception ignored" not in shown, err.decode()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to see what a process does")
def test_ctrl_c_ends_a_search_of_many_files_without_a_traceback(
    start: Callable[..., "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    for number in range(400):
        (tmp_path / f"m{number}.py").write_text("import torch\nx = torch.softmax(q @ k, -1) @ v\n" * 50)
    process = start("upgrade", ".", cwd=tmp_path, stdout=PIPE, stderr=PIPE, start_new_session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(lambda: len(children.read_text().split()) > 1, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err.decode()
    assert b"Traceback" not in err, err.decode()
