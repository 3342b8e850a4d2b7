"""Disks that refuse: full, read-only, or with files that may not grow."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from flashmore.errors import StorageError
from flashmore.runs import Checkpoint, Run

MakeRun = Callable[..., Run]
MakeCheckpoint = Callable[..., Checkpoint]
StepOf = Callable[[Run], int]
Contents = Callable[[Path], dict[str, bytes]]


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(4096))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read and write everything")
def test_a_folder_that_is_not_ours_is_named(make_run: MakeRun, run: Run, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(StorageError, match="write permission"):
        make_run(tmp_path / "closed" / "run")
    (run.path / "split.json").chmod(0)
    with pytest.raises(StorageError, match=r"split\.json"):
        Run.open(run.path)


def test_a_full_disk_takes_no_run_and_no_result(
    make_run: MakeRun, small_disk: Path, contents: Contents
) -> None:
    run = make_run(small_disk / "run")
    run.write_result({"test_loss": 2.0})
    before = contents(run.path)
    fill(small_disk)
    with pytest.raises(StorageError, match="free space") as caught:
        make_run(small_disk / "new" / "run")
    assert caught.value.exit_code == 1
    with pytest.raises(StorageError, match="free space"):
        run.write_result({"test_loss": 1.0, "names": ["anna"] * 1000})
    assert run.read_result() == {"test_loss": 2.0}
    assert contents(run.path) == before
    assert sorted(entry.name for entry in small_disk.iterdir()) == ["filler", "run"]


def test_a_disk_that_fills_up_between_the_files_of_a_run(make_run: MakeRun, small_disk: Path) -> None:
    fill(small_disk)
    filler = small_disk / "filler"
    failures = 0
    while True:
        os.truncate(filler, filler.stat().st_size - 4096)  # room for one more file
        try:
            run = make_run(small_disk / "run")
        except StorageError:
            failures += 1
            assert [entry.name for entry in small_disk.iterdir()] == ["filler"]
        else:
            break
    assert failures >= 3
    assert Run.open(run.path) == run


def test_a_full_disk_leaves_whole_lines(make_run: MakeRun, small_disk: Path) -> None:
    run = make_run(small_disk / "run")
    step = 0
    lines = run.log_metrics(run.load_state())
    with lines, pytest.raises(StorageError, match="free space"):  # noqa: PT012
        while True:
            lines.append({"step": step + 1, "loss": 0.1 + 0.2, "step_ms": 1 / 3})
            step += 1
    assert [line["step"] for line in run.read_metrics()] == list(range(1, step + 1))
    assert (run.path / "metrics.jsonl").read_bytes().endswith(b"}\n")


def test_a_read_only_disk_can_be_read(make_run: MakeRun, small_disk: Path, step_of: StepOf) -> None:
    run = make_run(small_disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert step_of(Run.open(run.path)) == 0
    assert run.read_metrics() == []
    for write in (
        lambda: run.log_metrics(run.load_state()),
        lambda: run.write_result({}),
        lambda: make_run(small_disk / "other"),
    ):
        with pytest.raises(StorageError, match="write permission"):
            write()


def test_a_full_disk_keeps_the_old_checkpoint(
    make_run: MakeRun, make_checkpoint: MakeCheckpoint, step_of: StepOf, small_disk: Path, contents: Contents
) -> None:
    run = make_run(small_disk / "run", channels=100)
    run.save_checkpoint(make_checkpoint(1, channels=100))
    fill(small_disk)
    before = contents(run.path)
    with pytest.raises(StorageError, match="free space") as caught:
        run.save_checkpoint(make_checkpoint(2, channels=100))
    assert str(run.path / "step-") in caught.value.wanted
    assert contents(run.path) == before
    assert step_of(run) == 1
    (small_disk / "filler").unlink()
    run.save_checkpoint(make_checkpoint(2, channels=100))
    assert step_of(run) == 2


@pytest.fixture
def short_files() -> Iterator[None]:
    """No file of this process may grow beyond 16 KiB: a disk that refuses, without being root."""
    resource = pytest.importorskip("resource", reason="limits on files are POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_quota_keeps_the_old_checkpoint(
    run: Run, make_checkpoint: MakeCheckpoint, step_of: StepOf, short_files: None, contents: Contents
) -> None:
    before = contents(run.path)
    with pytest.raises(StorageError, match="free space"):
        run.save_checkpoint(make_checkpoint(2, channels=10_000))
    assert step_of(run) == 0
    assert contents(run.path) == before
