"""Disks that refuse: full, read-only, or with files that may not grow."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from flashmore.errors import StorageError
from flashmore.runs import Checkpoint, Run

MakeRun = Callable[[Path], Run]
MakeCheckpoint = Callable[..., Checkpoint]
StepOf = Callable[[Checkpoint], int]

SETTINGS = ("config.json", "vocabulary.json", "split.json")


@pytest.fixture
def run(make_run: MakeRun, tmp_path: Path) -> Run:
    return make_run(tmp_path / "run")


def logged_steps(run: Run) -> list[int]:
    return [line["step"] for line in run.read_metrics()]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read and write everything")
def test_a_folder_that_is_not_ours_is_named(make_run: MakeRun, run: Run, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(StorageError, match="write permission"):
        make_run(tmp_path / "closed" / "run")
    (run.path / "split.json").chmod(0)
    with pytest.raises(StorageError, match=r"split\.json"):
        Run.open(run.path)


def test_a_full_disk_takes_no_run_and_no_result(make_run: MakeRun, small_disk: Path) -> None:
    run = make_run(small_disk / "run")
    run.write_result({"test_loss": 2.0})
    fill(small_disk)
    with pytest.raises(StorageError, match="free space") as caught:
        make_run(small_disk / "new" / "run")
    assert caught.value.exit_code == 1
    with pytest.raises(StorageError, match="free space"):
        run.write_result({"test_loss": 1.0, "names": ["anna"] * 1000})
    assert run.read_result() == {"test_loss": 2.0}
    assert sorted(entry.name for entry in small_disk.iterdir()) == ["filler", "run"]
    assert sorted(entry.name for entry in run.path.iterdir()) == sorted((*SETTINGS, "result.json"))


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
    assert failures == len(SETTINGS) - 1
    assert Run.open(run.path) == run


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(4096))


def test_a_full_disk_leaves_whole_lines(make_run: MakeRun, small_disk: Path) -> None:
    run = make_run(small_disk / "run")
    step = 0
    with pytest.raises(StorageError, match="free space"):  # noqa: PT012
        while True:
            run.append_metrics({"step": step, "note": "n" * 1000})
            step += 1
    assert logged_steps(run) == list(range(step))
    assert (run.path / "metrics.jsonl").read_bytes().endswith(b"}\n")
    with pytest.raises(StorageError, match="free space"):
        run.truncate_metrics(step // 2)
    assert logged_steps(run) == list(range(step))


def test_metrics_on_a_read_only_disk(make_run: MakeRun, small_disk: Path) -> None:
    run = make_run(small_disk / "run")
    run.append_metrics({"step": 1})
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert logged_steps(Run.open(run.path)) == [1]
    with pytest.raises(StorageError, match="that you may write"):
        run.append_metrics({"step": 2})
    with pytest.raises(StorageError, match="that you may write"):
        run.truncate_metrics(0)
    with pytest.raises(StorageError, match="that you may write"):
        make_run(small_disk / "other")
    assert logged_steps(run) == [1]


def test_a_full_disk_keeps_the_old_checkpoint(
    make_run: MakeRun, make_checkpoint: MakeCheckpoint, step_of: StepOf, small_disk: Path
) -> None:
    run = make_run(small_disk / "run")
    run.save_checkpoint("last", make_checkpoint(1))
    for size in (75_000, 140_000):  # of 4 bytes each: full in the optimizer's file, in the weights' file
        run.save_checkpoint("best", make_checkpoint(5, size=60_000))
        with pytest.raises(StorageError, match="free space") as caught:
            run.save_checkpoint("last", make_checkpoint(2, size=size))
        assert str(run.path / "last") in caught.value.wanted
        assert step_of(run.load_checkpoint("last")) == 1
        assert sorted(entry.name for entry in run.path.iterdir() if entry.is_dir()) == ["best", "last"]
        shutil.rmtree(run.path / "best")
    run.save_checkpoint("last", make_checkpoint(2))
    assert step_of(run.load_checkpoint("last")) == 2


def test_a_checkpoint_on_a_read_only_disk(
    make_run: MakeRun, make_checkpoint: MakeCheckpoint, step_of: StepOf, small_disk: Path
) -> None:
    run = make_run(small_disk / "run")
    run.save_checkpoint("last", make_checkpoint(1))
    (run.path / "last").rename(run.path / "last.old")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert step_of(Run.open(run.path).load_checkpoint("last")) == 1
    with pytest.raises(StorageError, match="that you may write"):
        run.save_checkpoint("last", make_checkpoint(2))
    assert step_of(Run.open(run.path).load_checkpoint("last")) == 1


@pytest.fixture
def short_files() -> Iterator[None]:
    """No file of this process may grow beyond 16 KiB: a disk that refuses, without being root."""
    resource = pytest.importorskip("resource", reason="limits on files are POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_quota_keeps_the_old_checkpoint(
    run: Run, make_checkpoint: MakeCheckpoint, step_of: StepOf, short_files: None
) -> None:
    run.save_checkpoint("last", make_checkpoint(1))
    with pytest.raises(StorageError, match="free space"):
        run.save_checkpoint("last", make_checkpoint(2, size=10_000))
    assert step_of(run.load_checkpoint("last")) == 1
    assert [entry.name for entry in run.path.iterdir() if entry.is_dir()] == ["last"]
