"""What a command does to the disk, recorded call by call, and every state that a power failure may leave.

This file is a program too: it runs a command, records its calls or lets one of them fail.

The model is that of POSIX: what is written to a file is on the disk after a sync of the file, and what
happens to a name in a folder after a sync of the folder. Until then each act may be lost, whatever became of
the others.
"""

import errno
import io
import itertools
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

MOST_PENDING = 7
"""With more acts that may be lost, only the last ones are lost in every combination, the others together."""


@dataclass(frozen=True)
class Act:
    """One call. `place` is the number of a file's inode, or the folder's path for what happens to a name."""

    kind: str
    place: int | str
    name: str = ""
    other: str = ""
    inode: int = -1
    offset: int = 0
    data: bytes = b""


class Recorder:
    """Replaces what flashmore calls; everything below `root` is recorded, or fails once at `fail_at`."""

    def __init__(self, root: Path, fail_at: int | None = None, number: int = errno.EIO) -> None:
        self.root, self.fail_at, self.number = str(root), fail_at, number
        self.acts: list[Act] = []
        self.calls = 0
        self._lock = threading.Lock()
        self._inodes: dict[str, int] = {}
        self._open: dict[int, int | str] = {}
        self._count = itertools.count()

    def _act(self, act: Act) -> None:
        self.acts.append(act)

    def _call(self) -> None:
        self.calls += 1
        if self.calls - 1 == self.fail_at:
            raise OSError(self.number, os.strerror(self.number))

    def _below(self, path: object) -> str | None:
        text = str(Path(path).absolute()) if isinstance(path, str | os.PathLike) else ""
        return text if text.startswith(self.root) else None

    def start(self) -> None:
        """Replace the functions of this process."""
        import flashmore.files

        recorder, real = (
            self,
            {name: getattr(os, name) for name in ("open", "fsync", "replace", "unlink", "mkdir")},
        )

        def opened(path: Any, flags: int, *mode: int, **options: Any) -> int:
            below = recorder._below(path)
            if below is None:
                return int(real["open"](path, flags, *mode, **options))
            writes = flags & (os.O_WRONLY | os.O_RDWR)
            with recorder._lock:
                if writes:
                    recorder._call()
                new = not os.path.lexists(path)
                descriptor: int = real["open"](path, flags, *mode, **options)
                recorder._open.pop(descriptor, None)  # of a file that was closed
                if Path(path).is_dir():
                    recorder._open[descriptor] = below
                elif writes:
                    if new:
                        inode = recorder._inodes[below] = next(recorder._count)
                        recorder._act(Act("create", str(Path(below).parent), below, inode=inode))
                    if below not in recorder._inodes:  # of a command before
                        recorder._inodes[below] = next(recorder._count)
                    recorder._open[descriptor] = recorder._inodes[below]
                return descriptor

        def synced(descriptor: int) -> None:
            with recorder._lock:
                if descriptor in recorder._open:
                    recorder._call()
                    recorder._act(Act("sync", recorder._open[descriptor]))
            real["fsync"](descriptor)

        def replaced(source: Any, target: Any) -> None:
            below = recorder._below(target)
            with recorder._lock:
                if below is not None:
                    recorder._call()
                    inode = recorder._inodes[below] = recorder._inodes.pop(recorder._below(source) or "")
                    folder = str(Path(below).parent)
                    recorder._act(Act("rename", folder, str(recorder._below(source)), below, inode=inode))
                real["replace"](source, target)

        def simple(kind: str) -> Callable[..., None]:
            def call(path: Any, *arguments: Any, **options: Any) -> None:
                below = recorder._below(path)
                with recorder._lock:
                    if below is not None:
                        recorder._call()
                    real[kind](path, *arguments, **options)
                    if below is not None:
                        recorder._act(Act(kind, str(Path(below).parent), below))
                        recorder._inodes.pop(below, None)

            return call

        class File(io.FileIO):
            def write(self, data: Any) -> int:
                inode = recorder._open.get(self.fileno())
                with recorder._lock:
                    if inode is None:
                        return super().write(data)
                    recorder._call()
                    offset = self.tell()
                    count = super().write(data)
                    recorder._act(Act("write", inode, offset=offset, data=bytes(data[:count])))
                    return count

            def truncate(self, size: int | None = None) -> int:
                inode = recorder._open.get(self.fileno())
                with recorder._lock:
                    if inode is None:
                        return super().truncate(size)
                    recorder._call()
                    recorder._act(Act("truncate", inode, offset=self.tell() if size is None else size))
                    return super().truncate(size)

        changed: Any = flashmore.files
        changed.FileIO = File
        os.open, os.fsync, os.replace = opened, synced, replaced  # type: ignore[assignment]
        os.unlink, os.mkdir = simple("unlink"), simple("mkdir")


@dataclass
class Disk:
    """Names and contents after some acts."""

    names: dict[str, int]
    contents: dict[int, bytes]
    folders: set[str]

    def apply(self, act: Act) -> None:
        """Do an act, as far as what it needs is there."""
        if act.kind == "create":
            self.names[act.name] = act.inode
        elif act.kind == "rename":
            self.names.pop(act.name, None)
            self.names[act.other] = act.inode
        elif act.kind == "unlink":
            self.names.pop(act.name, None)
        elif act.kind == "mkdir":
            self.folders.add(act.name)
        elif isinstance(act.place, int):
            content = self.contents.get(act.place, b"")
            if act.kind == "truncate":
                content = content[: act.offset].ljust(act.offset, b"\0")
            elif act.kind == "write":
                end = act.offset + len(act.data)
                content = content[: act.offset].ljust(act.offset, b"\0") + act.data + content[end:]
            self.contents[act.place] = content

    @property
    def files(self) -> dict[str, bytes]:
        """The content of every file whose folders are there."""
        return {
            name: self.contents.get(inode, b"")
            for name, inode in self.names.items()
            if str(Path(name).parent) in self.folders
        }


def after_power_failures(root: Path, acts: list[Act]) -> Iterator[tuple[int, str, dict[str, bytes]]]:
    """Every state of the files that a power failure may leave: after each act, each combination of lost acts.

    Args:
        root: the folder, which was empty before.
        acts: what was done in it.

    Yields:
        How many acts were done, which of them were lost, and the content of every file by its path, which is
        never the same twice.
    """
    seen = set()
    for count in range(len(acts) + 1):
        done = acts[:count]
        pending = [
            number for number, act in enumerate(done) if act.kind != "sync" and not is_safe(number, done)
        ]
        for lost in _subsets(pending):
            for torn in (None, *(number for number in pending if number not in lost and done[number].data)):
                disk = Disk({}, {}, {str(root)})
                for number, act in enumerate(done):
                    if number == torn:
                        act = Act(act.kind, act.place, offset=act.offset, data=act.data[: len(act.data) // 2])
                    if number not in lost:
                        disk.apply(act)
                files = disk.files
                if (key := frozenset(files.items())) not in seen:
                    seen.add(key)
                    yield count, f"lost {sorted(lost)}, torn {torn}", files


def is_safe(number: int, done: list[Act]) -> bool:
    """Whether an act is on the disk after the acts of `done`."""
    return any(later.kind == "sync" and later.place == done[number].place for later in done[number + 1 :])


def _subsets(pending: list[int]) -> Iterator[set[int]]:
    first, last = pending[:-MOST_PENDING], pending[-MOST_PENDING:]
    for size in range(len(last) + 1):
        for some in itertools.combinations(last, size):
            yield set(some)
            if first:
                yield {*first, *some}


def materialise(files: dict[str, bytes], source: Path, target: Path) -> None:
    """Write a state of the files below `source` into a new folder."""
    target.mkdir()
    for name, data in files.items():
        path = target / Path(name).relative_to(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def main(root: str, report: str, fail_at: str, number: str, *words: str) -> int:
    """The program: run a command, and write what it did."""
    import warnings

    from flashmore.cli.main import main as command

    warnings.simplefilter("ignore")
    recorder = Recorder(Path(root), None if fail_at == "-" else int(fail_at), int(number))
    recorder.start()
    code = command(words)
    with suppress(OSError), Path(report).open("wb") as file:
        pickle.dump(([astuple(act) for act in recorder.acts], recorder.calls), file)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
