"""Damaged and crafted run folders, each made from a seed or a number."""

import json
import os
import pickle
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from flashmore.runs import records
from flashmore.runs.checkpoint import _digest

OUTSIDE = "mine, and nobody else's\n"
"""Content of the file outside the run that links lead to."""
CONFIG, VOCABULARY, SPLIT, RESULT = "config.json", "vocabulary.json", "split.json", "result.json"


@dataclass(frozen=True)
class Home:
    """Where a damaged run lies: `run` beside `outside.txt`, and an intact run of the same sizes, `twin`."""

    folder: Path
    twin: Path

    @property
    def run(self) -> Path:
        """The run."""
        return self.folder / "run"

    @property
    def outside(self) -> Path:
        """A file outside the run."""
        return self.folder / "outside.txt"


def damage_at_random(home: Home, seed: int) -> str:
    """Do one to three random damages; say which."""
    chance = random.Random(seed)
    done = []
    for _ in range(chance.choices((1, 2, 3), (7, 2, 1))[0]):
        files = sorted(path for path in home.run.iterdir() if not path.name.startswith("events."))
        target = chance.choice(files)
        act = chance.choice(DAMAGES)
        done.append(f"{act.__name__} {target.name}")
        act(home, target, chance)
    return ", ".join(done)


def _bytes_of(path: Path) -> bytearray:
    status = path.lstat()
    small = stat.S_ISREG(status.st_mode) and status.st_size < 2**24  # and none that was made huge before
    return bytearray(path.read_bytes() if small else b"x")


def _put(path: Path, data: bytes | bytearray) -> None:
    _remove(path)
    path.write_bytes(data)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def flip_bits(home: Home, path: Path, chance: random.Random) -> None:
    data = _bytes_of(path)
    for _ in range(chance.randint(1, 8)):
        if data:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    _put(path, data)


def cut(home: Home, path: Path, chance: random.Random) -> None:
    data = _bytes_of(path)
    _put(path, data[: chance.randint(0, len(data))])


def extend(home: Home, path: Path, chance: random.Random) -> None:
    _put(path, _bytes_of(path) + chance.randbytes(chance.choice((1, 8, 1000))))


def overwrite(home: Home, path: Path, chance: random.Random) -> None:
    data = _bytes_of(path)
    start = chance.randint(0, len(data))
    count = chance.randint(0, len(data) - start)
    data[start : start + count] = chance.choice((bytes(count), chance.randbytes(count)))
    _put(path, data)


def move_a_piece(home: Home, path: Path, chance: random.Random) -> None:
    data = _bytes_of(path)
    first, last = sorted(chance.randint(0, len(data)) for _ in range(2))
    piece = data[first:last]
    del data[first:last]
    at = chance.randint(0, len(data))
    _put(path, data[:at] + piece + data[at:])


def replace(home: Home, path: Path, chance: random.Random) -> None:
    _put(path, chance.choice((b"", b"{}", b"[" * 100_000, b"\xff" * 100, chance.randbytes(500))))


def delete(home: Home, path: Path, chance: random.Random) -> None:
    _remove(path)


def take_another_file(home: Home, path: Path, chance: random.Random) -> None:
    _put(path, _bytes_of(chance.choice(sorted(home.run.iterdir()))))


def take_from_the_twin(home: Home, path: Path, chance: random.Random) -> None:
    other = home.twin / path.name
    _put(path, other.read_bytes() if other.exists() else b"")


def link_outside(home: Home, path: Path, chance: random.Random) -> None:
    _remove(path)
    path.symlink_to(
        chance.choice((home.outside, home.folder / "new.txt", Path("/dev/zero"), home.twin / path.name))
    )


def hard_link_outside(home: Home, path: Path, chance: random.Random) -> None:
    _remove(path)
    path.hardlink_to(home.outside)


def make_pipe(home: Home, path: Path, chance: random.Random) -> None:
    _remove(path)
    os.mkfifo(path)


def make_folder(home: Home, path: Path, chance: random.Random) -> None:
    _remove(path)
    path.mkdir()


def make_huge(home: Home, path: Path, chance: random.Random) -> None:
    _put(path, _bytes_of(path))
    os.truncate(path, chance.choice((2**32, 2**40)))  # a hole, which takes no room on the disk


DAMAGES: tuple[Callable[[Home, Path, random.Random], None], ...] = (
    flip_bits, flip_bits, flip_bits, cut, extend, overwrite, overwrite, move_a_piece, replace, delete,
    take_another_file, take_from_the_twin, link_outside, hard_link_outside, make_pipe, make_folder, make_huge,
)  # fmt: skip


@dataclass
class Parts:
    """Everything that a run holds, to be altered and written again with checksums that fit."""

    config: dict[str, Any]
    vocabulary: dict[str, Any]
    split: dict[str, Any]
    result: dict[str, Any]
    last: dict[str, Any]
    """The sealed metadata of the checkpoint."""
    tensors: dict[str, torch.Tensor]

    @classmethod
    def of(cls, run: Path) -> "Parts":
        """Read an intact run."""
        with safe_open(run / "last.safetensors", framework="pt") as file:
            last = json.loads(file.metadata()["checkpoint"])
            tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
        config, vocabulary, split, result = (
            json.loads((run / name).read_bytes()) for name in (CONFIG, VOCABULARY, SPLIT, RESULT)
        )
        return cls(config, vocabulary, split, result, last, tensors)

    def write(self, run: Path) -> None:
        """Write them with every checksum right, as somebody who means harm would."""
        for name, part in ((VOCABULARY, self.vocabulary), (SPLIT, self.split)):
            (run / name).write_bytes(_json(part))
            if isinstance(self.config.get("files"), dict):
                self.config["files"][name] = records.digest(_json(part))
        (run / CONFIG).write_bytes(_json(_sealed(self.config)))
        digest = records.digest((run / CONFIG).read_bytes())
        (run / RESULT).write_bytes(_json(_sealed(self.result | {"config_sha256": digest})))
        for group in ("weights", "optimizer"):
            own = {n.partition(".")[2]: value for n, value in self.tensors.items() if n.startswith(group)}
            self.last[group] = _digest(own)
        best = self.last | {"run": self.last.get("run", digest)}
        for name in ("last", "best"):
            header = _json(_sealed({"name": name, **best, "run": digest} | self.header_changes)).decode()
            kept = {n: v for n, v in self.tensors.items() if name == "last" or n.startswith("weights.")}
            (run / f"{name}.safetensors").write_bytes(save(kept, {"checkpoint": header}))

    @property
    def header_changes(self) -> dict[str, Any]:
        """What was altered in the checkpoint's header on purpose."""
        changed: dict[str, Any] = self.last.get("changes", {})
        return changed


def _json(value: Any) -> bytes:
    """As json.dumps does it, infinities and all: they are what is tried."""
    return (json.dumps(value) + "\n").encode()


def _sealed(content: dict[str, Any]) -> dict[str, Any]:
    content = {name: value for name, value in content.items() if name not in ("sha256", "changes")}
    checksum = records.digest(json.dumps(content, sort_keys=True).encode())
    return {**content, "sha256": checksum}


VALUES: tuple[Any, ...] = (
    None, -1, 0, 0.5, 10**9, 10**30, 1e308, float("inf"), True, "x", "../../outside.txt", [], {},
    "\x1b]0;owned\x07\u202e", ["__import__('os').system('touch new.txt')"],
)  # fmt: skip
"""What is put in the place of every value."""


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in a document, of lists only the first two items."""
    yield path
    if isinstance(value, dict):
        for name in value:
            yield from leaves(value[name], (*path, name))
    elif isinstance(value, list):
        for index in range(min(2, len(value))):
            yield from leaves(value[index], (*path, index))


def put(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Replace one value in a document."""
    if not path:
        return value if isinstance(value, dict) else {"value": value}
    inner = document
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return document


def crafted(run: Path) -> Iterator[tuple[str, Callable[[Home], None]]]:
    """Every crafted damage: a name, and what makes it."""
    intact = Parts.of(run)
    for part in ("config", "vocabulary", "split", "result", "last"):
        for path in leaves(getattr(intact, part)):
            if path[-1:] != ("sha256",) and path[:1] not in (("weights",), ("optimizer",), ("files",)):
                for number, value in enumerate(VALUES):
                    yield f"{part}{list(path)} = {value!r:.40}", _value_at(part, path, number)
    for name in intact.tensors:
        for change in TENSORS:
            yield f"{change.__name__} {name}", _tensor_at(name, change)
    for name in ("last.safetensors", "best.safetensors", "tokens.bin", CONFIG, "metrics.jsonl"):
        yield f"pickle in {name}", _pickle_in(name)


def _value_at(part: str, path: tuple[Any, ...], number: int) -> Callable[[Home], None]:
    def make(home: Home) -> None:
        parts = Parts.of(home.run)
        setattr(parts, part, put(getattr(parts, part), path, VALUES[number]))
        if part == "last" and path[:1] in (("name",), ("run",)):
            parts.last["changes"] = {path[0]: VALUES[number]}
        parts.write(home.run)

    return make


def to_half(value: torch.Tensor) -> torch.Tensor:
    return value.to(torch.float16)


def to_integers(value: torch.Tensor) -> torch.Tensor:
    return value.to(torch.int64)


def without_an_element(value: torch.Tensor) -> torch.Tensor:
    return value.flatten()[:-1].clone()


def empty(value: torch.Tensor) -> torch.Tensor:
    return value.new_zeros((0, *value.shape))


def as_scalar(value: torch.Tensor) -> torch.Tensor:
    return value.new_zeros(())


def many(value: torch.Tensor) -> torch.Tensor:
    return torch.zeros(2**20, dtype=value.dtype)


def not_finite(value: torch.Tensor) -> torch.Tensor:
    return torch.full_like(value, float("nan")) if value.is_floating_point() else torch.full_like(value, 255)


def extreme(value: torch.Tensor) -> torch.Tensor:
    return torch.full_like(value, -3e38) if value.is_floating_point() else torch.zeros_like(value)


TENSORS = (to_half, to_integers, without_an_element, empty, as_scalar, many, not_finite, extreme)


def _tensor_at(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Home], None]:
    def make(home: Home) -> None:
        parts = Parts.of(home.run)
        parts.tensors[name] = change(parts.tensors[name])
        parts.write(home.run)

    return make


class _Payload:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.folder / 'new.txt'}",)


def _pickle_in(name: str) -> Callable[[Home], None]:
    def make(home: Home) -> None:
        (home.run / name).write_bytes(pickle.dumps(_Payload(home.folder)))

    return make


def copy_of(run: Path, twin: Path, folder: Path) -> Home:
    """A home with a copy of an intact run."""
    folder.mkdir()
    shutil.copytree(run, folder / "run")
    home = Home(folder, twin)
    home.outside.write_text(OUTSIDE)
    return home
