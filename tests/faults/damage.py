"""Damaged and crafted run folders, each made from a seed or a number."""

import json
import os
import pickle
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from flashmore.runs import records
from flashmore.runs.checkpoint import _digest, file_name

OUTSIDE = "mine, and nobody else's\n"
"""Content of the file outside the run that links lead to."""
CONFIG, VOCABULARY, SPLIT, RESULT = "config.json", "vocabulary.json", "split.json", "result.json"
METRICS, STORE = "metrics.jsonl", "tokens.bin"


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
    def last(self) -> Path:
        """Its newest checkpoint."""
        return newest(self.run)

    @property
    def outside(self) -> Path:
        """A file outside the run."""
        return self.folder / "outside.txt"


def newest(run: Path) -> Path:
    """The newest checkpoint of a run."""
    return max(run.glob("step-*"))


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

    model_config: dict[str, Any]
    vocabulary: dict[str, Any]
    split: dict[str, Any]
    result: dict[str, Any] | None
    """None to leave none."""
    last: dict[str, Any]
    """The sealed metadata of the checkpoint."""
    tensors: dict[str, torch.Tensor]

    @classmethod
    def of(cls, run: Path) -> "Parts":
        """Read an intact run."""
        with safe_open(newest(run), framework="pt") as file:
            last = json.loads(file.metadata()["checkpoint"])
            tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
        model_config, vocabulary, split, result = (
            json.loads((run / name).read_bytes()) for name in (CONFIG, VOCABULARY, SPLIT, RESULT)
        )
        return cls(model_config, vocabulary, split, result, last, tensors)

    def write(self, run: Path) -> None:
        """Write them with every checksum right, as somebody who means harm would."""
        for name, part in ((VOCABULARY, self.vocabulary), (SPLIT, self.split)):
            (run / name).write_bytes(_json(part))
            if isinstance(self.model_config.get("files"), dict):
                self.model_config["files"][name] = records.digest(_json(part))
        (run / CONFIG).write_bytes(_json(_sealed(self.model_config)))
        digest = records.digest((run / CONFIG).read_bytes())
        if self.result is None:
            _remove(run / RESULT)
        else:
            (run / RESULT).write_bytes(_json(_sealed(self.result | {"config_sha256": digest})))
        for group in ("weights", "optimizer"):
            own = {n.partition(".")[2]: value for n, value in self.tensors.items() if n.startswith(group)}
            self.last[group] = _digest(own)
        for path in run.glob("step-*"):  # an intact one would be used instead
            path.unlink()
        state: dict[str, Any] = self.last["state"] if isinstance(self.last.get("state"), dict) else {}
        steps = [each for each in (state.get("best_step"), state.get("step")) if type(each) is int]
        for step in [each for each in steps if 0 <= each < 10**15] or [0]:
            changed: dict[str, Any] = {"state": {**state, "step": step}} if step in steps[:-1] else {}
            header = _json(_sealed(self.last | {"run": digest} | changed | self.header_changes)).decode()
            (run / file_name(step)).write_bytes(save(self.tensors, {"checkpoint": header}))

    @property
    def header_changes(self) -> dict[str, Any]:
        """What was altered in the checkpoint's header on purpose."""
        changed: dict[str, Any] = self.last.get("changes", {})
        return changed


NESTED = {"<list>": "[" * 5000 + "]" * 5000, "<object>": '{"x": ' * 900 + "0" + "}" * 900}
"""JSON that json.dumps would have to recurse for, and what stands for it in a document."""


def text_of(value: Any, *, sort_keys: bool = False) -> str:
    """As json.dumps writes it, infinities and all: they are what is tried."""
    text = json.dumps(value, sort_keys=sort_keys)
    for name, nested in NESTED.items():
        text = text.replace(json.dumps(name), nested)
    return text


def _json(value: Any) -> bytes:
    return (text_of(value) + "\n").encode()


def _sealed(content: dict[str, Any]) -> dict[str, Any]:
    content = {name: value for name, value in content.items() if name not in ("sha256", "changes")}
    return {**content, "sha256": records.digest(text_of(content, sort_keys=True).encode())}


VALUES: tuple[Any, ...] = (
    None, -1, 0, 0.5, 10**9, 10**30, 1e308, float("inf"), True, "x", "../../outside.txt", [], {},
    "\x1b]0;owned\x07\u202e", ["__import__('os').system('touch new.txt')"],
    10**400, "\ud800", "\x00", "/proc/kmsg", "/dev/zero", "x" * 10**6, *NESTED,
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


Change = Callable[[Home, Parts], object]
"""Alters the parts of a run, and perhaps what lies beside them, before they are written with checksums that
fit."""


def crafted(run: Path) -> Iterator[tuple[str, Callable[[Home], None]]]:
    """Every crafted damage: a name, and what makes it."""
    intact = Parts.of(run)
    for part in ("model_config", "vocabulary", "split", "result", "last"):
        for path in leaves(getattr(intact, part)):
            if path[-1:] != ("sha256",) and path[:1] not in (("weights",), ("optimizer",), ("files",)):
                for value in VALUES:
                    yield f"{part}{list(path)} = {value!r:.40}", written(_value_at(part, path, value))
    for name in intact.tensors:
        for change in TENSORS:
            yield f"{change.__name__} {name}", written(_tensor_at(name, change))
    for stage in STAGES:
        for name, lines in _metrics():
            yield f"metrics, {stage}: {name}", written(partial(_with_metrics, stage, lines))
    for side in ("requested", "config"):
        for name, value in OTHER_CONFIGS:
            yield f"{side}: {name} = {value!r}", written(_value_at("model_config", (side, name), value))
    for scale, tracker in LOSS_SCALES:
        value = {"scale": scale, "growth_tracker": tracker}
        yield f"loss scale {value!r:.60}", written(_value_at("last", ("state", "loss_scale"), value))
    for name in (*sorted(intact.tensors)[:1], *sorted(intact.tensors)[-1:], "weights.x", "optimizer.x", "x"):
        yield f"a hole of 1 TiB for {name}", partial(_tensor_in_a_hole, name=name)
    yield "a header in a hole", _header_in_a_hole
    yield "result of the twin, sealed anew", written(_result_of_the_twin)
    yield "metrics of the twin, sealed anew", written(_metrics_of_the_twin)
    if intact.split["text"] is not None:
        for store in (_store_of_unknown_ids, _store_in_a_hole, _tokens_in_a_hole):
            yield store.__name__, written(store)
        for kind in ("characters", "tokens"):
            for name in SOURCES:
                yield f"{kind} of {name}", written(partial(_ids_of, kind, name))
    if intact.split["stored"] is not None:
        for name in SOURCES:
            yield f"list of {name}", written(partial(_list_of, name))
    for name in (newest(run).name, STORE, CONFIG, METRICS):
        yield f"pickle in {name}", _pickle_in(name)


def written(change: Change) -> Callable[[Home], None]:
    """Change the parts of a run and write them again."""

    def make(home: Home) -> None:
        parts = Parts.of(home.run)
        change(home, parts)
        parts.write(home.run)

    return make


def _value_at(part: str, path: tuple[Any, ...], value: Any) -> Change:
    def change(_: Home, parts: Parts) -> None:
        setattr(parts, part, put(getattr(parts, part), path, deepcopy(value)))
        if part == "last" and path[:1] == ("run",):
            parts.last["changes"] = {path[0]: value}

    return change


STAGES: dict[str, dict[str, Any]] = {
    "complete": {}, "interrupted": {}, "ended": {"step": 6, "max_steps": 6, "best_step": 6}
}  # fmt: skip
"""With its result; without; and without, although every step is made. The state of the last checkpoint."""
LINE = {"step": 1, "loss": 2.0, "step_ms": 3.0}


def _metrics() -> Iterator[tuple[str, bytes]]:
    yield "no line", b""
    yield "no line end", _json(LINE)[:-1]
    yield "no objects", b"[]\n" * 5
    yield "100,000 empty objects", b"{}\n" * 10**5
    for key in LINE:
        yield f"no {key}", _json({name: value for name, value in LINE.items() if name != key})
        for value in (*VALUES, float("nan")) if key != "loss" else ():  # which nothing reads
            yield f"{key} = {value!r:.40}", _json(LINE | {key: value})


def _with_metrics(stage: str, lines: bytes, home: Home, parts: Parts) -> None:
    if stage != "complete":
        parts.result = None
    (home.run / METRICS).write_bytes(lines)
    fitting = {"metrics_bytes": len(lines), "metrics_sha256": records.digest(lines)}
    parts.last["state"] |= fitting | STAGES[stage]


def _metrics_of_the_twin(home: Home, parts: Parts) -> None:
    _with_metrics("complete", (home.twin / METRICS).read_bytes(), home, parts)


def _result_of_the_twin(home: Home, parts: Parts) -> None:
    parts.result = json.loads((home.twin / RESULT).read_bytes())


OTHER_CONFIGS: tuple[tuple[str, Any], ...] = (
    ("model", "bigram"), ("model", "transformer"), ("mode", "items"), ("mode", "text"), ("seed", 7),
    ("dropout", 0.9), ("dtype", "float16"), ("dtype", "bfloat16"), ("file", "/proc/kmsg"), ("unknown", 1),
    ("steps", 10**12), ("steps", 1), ("speedups", ["bf16"]), ("device", "cuda"), ("attention", "flash"),
    ("optimizer", "muon"), ("threads", 4096), ("batch", 10**9), ("channels", 16), ("context", 2**20),
)  # fmt: skip
"""Values that a config may have, and that this one does not have."""
LOSS_SCALES = (
    (0.0, 0), (-1.0, 0), (float("inf"), 0), (float("nan"), 0), (1e308, 0), (1e-320, 0), (10**400, 0),
    (65536.0, -1), (65536.0, 2**31), (65536.0, 2**62), (65536.0, 10**30), (65536.0, 10**400), (65536.0, 0),
)  # fmt: skip
"""Scale and growth tracker of a checkpoint."""
SOURCES = ("/proc/kmsg", "/dev/zero", "pipe", "folder", "missing", "outside.txt")
"""What a text's path leads to, beside the run where it is relative."""


def _list_of(name: str, home: Home, parts: Parts) -> None:
    parts.split["stored"]["path"] = _made(name, home)


def _store_of_unknown_ids(home: Home, parts: Parts) -> None:
    data = b"\xff" * (2 * parts.split["text"]["count"])
    (home.run / STORE).write_bytes(data)
    parts.split["text"]["store_sha256"] = records.digest(data)


def _store_in_a_hole(home: Home, parts: Parts) -> None:
    os.truncate(home.run / STORE, 2**42)
    parts.split["text"]["count"] = 2**41


def _tokens_in_a_hole(home: Home, parts: Parts) -> None:
    _ids_of("tokens", "huge.bin", home, parts)
    parts.split["text"]["count"] = 2**41
    (home.folder / "huge.bin").touch()
    os.truncate(home.folder / "huge.bin", 2**42)


def _made(name: str, home: Home) -> str:
    """The path of one of `SOURCES`."""
    path = home.folder / name
    if name == "pipe":
        os.mkfifo(path)
    if name == "folder":
        path.mkdir()
    return str(path)


def _ids_of(kind: str, name: str, home: Home, parts: Parts) -> None:
    text = parts.split["text"]
    text |= {"kind": kind, "path": _made(name, home)} | ({"store_sha256": None} if kind == "tokens" else {})
    _remove(home.run / STORE)


def _tensor_in_a_hole(home: Home, name: str) -> None:
    with safe_open(home.last, framework="pt") as file:
        kept = {other: file.get_tensor(other) for other in file.offset_keys() if other != name}
        data = save(kept, file.metadata())
    size = int.from_bytes(data[:8], "little")
    header, end = json.loads(data[8 : 8 + size]), len(data) - 8 - size
    header[name] = {"dtype": "F32", "shape": [2**38], "data_offsets": [end, end + 2**40]}
    text = json.dumps(header).encode()
    (home.last).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    os.truncate(home.last, 8 + len(text) + end + 2**40)


def _header_in_a_hole(home: Home) -> None:
    (home.last).write_bytes((2**24).to_bytes(8, "little"))
    os.truncate(home.last, 2**40)


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


def _tensor_at(name: str, alter: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    def change(_: Home, parts: Parts) -> None:
        parts.tensors[name] = alter(parts.tensors[name])

    return change


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
