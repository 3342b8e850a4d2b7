"""Training in several processes: whoever dies or is stopped, and nothing begun that cannot end."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from flashmore import TrainConfig, resume, train
from flashmore.runs import Run
from flashmore.training.verify import verify
from forks import Forks
from rank_jobs import NAMES, SMALL, Started, same, words

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="starts and kills processes as Linux does")
TRAIN = ("-m", "flashmore", "train")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (({"batch_size": 15}, {"batch_size": 15}), "a --batch-size that 2 slices share equally"),
        (({"seed": 1}, {"seed": 2}), "differences in seed"),
        (({"file": "/nowhere"}, {"file": "/nowhere"}), "such file or directory"),
        (({"parallel": "fsdp", "optimizer": "muon"},) * 2, "--optimizer muon, which needs whole matrices"),
    ],
)
def test_bad_input_is_refused_once_before_anything_is_written(
    tmp_path: Path, options: tuple[dict[str, Any], ...], says: str, forks: Forks
) -> None:
    lines = [
        (*TRAIN, each.get("file", NAMES), *words(**SMALL | each)[1:], "--out", "run") for each in options
    ]
    (code, output), *others = Started(forks, tmp_path, *lines).ends()
    assert (code, output.count("wanted:")) == (2, 1)
    assert says in output
    assert all(code and not output for code, output in others)
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_told(tmp_path: Path, forks: Forks) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        place = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        done = forks.run((*TRAIN, *words(**SMALL), "--out", "run"), os.environ | place, tmp_path)
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert f"wanted: a connection of 2 ranks at 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


def lines_of(run: Path) -> int:
    """The number of lines in the metrics."""
    return (run / "metrics.jsonl").read_text().count("\n") if (run / "metrics.jsonl").exists() else 0


def wait_for(run: Path, lines: int) -> None:
    """Until there are so many lines in the metrics."""
    began = time.monotonic()
    while lines_of(run) < lines:
        assert time.monotonic() - began < 300
        time.sleep(0.02)


ENDLESS = SMALL | {"max_steps": 10**6, "eval_interval": 20, "log_interval": 5, "slices": 4}


@pytest.fixture
def started(tmp_path: Path, forks: Forks) -> Iterator[Started]:
    """Two ranks that train until they are stopped."""
    ranks = Started(forks, tmp_path, *[(*TRAIN, *words(**ENDLESS), "--out", "run")] * 2)
    try:
        wait_for(tmp_path / "run", 8)
        yield ranks
    finally:
        ranks.stop()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_any_rank_stops_all_at_the_same_step(started: Started, tmp_path: Path, rank: int) -> None:
    started.send(rank, signal.SIGTERM)
    (code, output), (_, silent) = started.ends()
    step = Run.open(tmp_path / "run").load_state().step
    assert (code, silent) == (130, "")
    assert f"Interrupted by SIGTERM at step {step:,} of 1,000,000; saved." in output
    assert "Traceback" not in (tmp_path / "run" / "rank-1.log").read_text()


def test_ranks_end_when_one_dies_and_the_run_goes_on_in_one_process(started: Started, tmp_path: Path) -> None:
    started.send(1, signal.SIGKILL)
    (code, output), _ = started.ends()
    assert code == 1
    assert "another rank has ended" in output
    run = tmp_path / "run"
    saved = Run.open(run).load_state().step
    resume(run, saved + 4)
    train(TrainConfig(**ENDLESS | {"max_steps": saved + 4}), tmp_path / "whole")
    assert same(run, tmp_path / "whole")


def workers(agent: int) -> dict[int, int]:
    """The process of each rank that a torchrun has started."""
    found = {}
    for process in psutil.Process(agent).children():
        with suppress(psutil.Error, KeyError):
            found[int(process.environ()["RANK"])] = process.pid
    return found


@pytest.mark.parametrize("kills", [1, pytest.param(50, marks=pytest.mark.long)])
def test_a_run_goes_on_by_itself_whichever_rank_is_killed(tmp_path: Path, kills: int) -> None:
    chance, run = random.Random(kills), tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(kills), "-m", "flashmore", "train", *words(**ENDLESS), "--out", "run"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    agent = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(kills):
            wait_for(run, lines_of(run) + 1)
            time.sleep(chance.random())
            before = workers(agent.pid)
            os.kill(before[chance.randrange(2)], signal.SIGKILL)
            while len(set(workers(agent.pid).values()) - set(before.values())) < 2:
                assert agent.poll() is None, agent.communicate()[1]
                time.sleep(0.05)
        wait_for(run, lines_of(run) + 1)
        agent.send_signal(signal.SIGTERM)
        assert "Interrupted by SIGTERM" in agent.communicate(timeout=300)[1]
    finally:
        agent.kill()
    steps = [line["step"] for line in Run.open(run).read_metrics()]
    assert steps == sorted(set(steps))
    assert [each for each in verify(run) if each.problem is not None] == []
    if kills == 1:
        saved = Run.open(run).load_state().step
        resume(run, saved + 4)
        train(TrainConfig(**ENDLESS | {"max_steps": saved + 4}), tmp_path / "whole")
        assert same(run, tmp_path / "whole")
