"""A process that dies while it writes a run leaves a whole one, or what the next one cleans up."""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import pytest

from flashmore.runs import Checkpoint, Run, locked
from flashmore.runs.folder import remove_unfinished
from forks import Forked, Forks

MakeRun = Callable[..., Run]
MakeCheckpoint = Callable[..., Checkpoint]
StepOf = Callable[[Run], int]

WRITER = f"""
import os, random, signal, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from conftest import checkpoint_of
from flashmore.runs import Run

def in_child(act):
    child = os.fork()
    if not child:
        act()
        os._exit(0)
    return child
"""

SAVE_AND_BE_KILLED = """
home = Path(sys.argv[1])
def save_for_ever():
    run = Run.open(home)
    step = run.load_state().step
    while True:
        step += 1
        run.save_checkpoint(checkpoint_of(step))
        os.write(saved, b"!")

chance = random.Random(1)
for _ in range(25):
    told, saved = os.pipe()
    child = in_child(save_for_ever)
    os.close(saved)
    assert os.read(told, 1)  # one save at least
    time.sleep(chance.uniform(0.0, 0.04))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(told)
    print(Run.open(home).load_state().step, flush=True)
"""

SAVE_UNTIL_TOLD = """
run, step = Run.open(sys.argv[1]), 0
while not Path(sys.argv[2]).exists() and step < 100_000:
    step += 1
    run.save_checkpoint(checkpoint_of(step))
"""


@pytest.fixture
def start(environment: dict[str, str], forks: Forks, tmp_path: Path) -> Callable[..., Forked]:
    """Start a writer that gives what it prints to a file."""
    variables = {name: value for name, value in environment.items() if name != "PYTHONWARNINGS"}

    def begin(code: str, *arguments: Path, printed: IO[bytes]) -> Forked:
        program = tmp_path / "writer.py"
        program.write_text(WRITER + code, encoding="utf-8")
        with Path(os.devnull).open() as nothing:
            streams = nothing.fileno(), printed.fileno(), 2
            return forks.start((program, *arguments), variables, streams)

    return begin


@pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")
def test_saves_killed_at_any_moment_keep_weights_and_optimizer_together(
    run: Run, step_of: StepOf, start: Callable[..., Forked]
) -> None:
    with TemporaryFile() as printed:
        assert start(SAVE_AND_BE_KILLED, run.path, printed=printed).wait() == 0
        printed.seek(0)
        steps = [int(line) for line in printed]
    assert steps == sorted(set(steps))
    assert len(steps) == 25
    assert step_of(run) == steps[-1]


def test_what_a_dead_writer_left_is_removed_by_the_next(run: Run, make_run: MakeRun, tmp_path: Path) -> None:
    (run.path / ".step-000000000.safetensors.0123456789abcdef.tmp").write_bytes(b"half")
    assert Run.open(run.path) == run
    kept = (".notes.tmp", ".0123456789abcdef.tmp", ".a.0123456789ABCDEF.tmp", "a.0123456789abcdef.tmp")
    for name in kept:
        (run.path / name).write_bytes(b"of the user")
    with locked(run.path):
        remove_unfinished(run.path)
    assert {path.name for path in run.path.glob("*.tmp")} == set(kept)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    for name in ("run.lock", "split.json", "vocabulary.json", ".split.json.0123456789abcdef.tmp"):
        (unfinished / name).write_bytes(b"half")
    made = make_run(unfinished)
    assert sorted(entry.name for entry in made.path.iterdir()) == sorted(
        ("config.json", "step-000000000.safetensors", "run.lock", "split.json", "vocabulary.json")
    )
    assert made.settings == run.settings


def test_a_run_is_read_while_another_process_writes_it(
    run: Run, step_of: StepOf, start: Callable[..., Forked], tmp_path: Path
) -> None:
    steps: list[int] = []
    with TemporaryFile() as printed:
        writer = start(SAVE_UNTIL_TOLD, run.path, tmp_path / "enough", printed=printed)
    try:
        while len(set(steps)) < 15 and not writer.ended(0):
            steps.append(step_of(Run.open(run.path)))
    finally:
        (tmp_path / "enough").touch()
        code = writer.wait()
    assert code == 0
    with locked(run.path):
        pass
