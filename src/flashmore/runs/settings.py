"""config.json, vocabulary.json and split.json: the run's settings, written once.

config.json is sealed and contains the SHA-256 of the other two, which ties the three together. Its own
SHA-256 identifies the run in all files written later.
"""

import math
import shlex
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import torch

from flashmore.config import CHANGEABLE, MOST_TEACHERS
from flashmore.data.items import MAX_LENGTH, Split
from flashmore.data.long_text import STORE, LongText, random_facts
from flashmore.data.stored_items import StoredItems
from flashmore.data.text import NOT_TEXT
from flashmore.data.vocabulary import Vocabulary
from flashmore.errors import DataError, RunError
from flashmore.files import INTACT, disk_errors, is_temporary, read_regular, why_not_regular
from flashmore.models.config import ModelConfig
from flashmore.runs import records
from flashmore.runs.checkpoint import file_name, step_of
from flashmore.strict_json import MOST_VALUES, count_values

FORMAT = 7
"""Version of the folder's format, increased with every change that an older flashmore cannot read."""

CONFIG, VOCABULARY, SPLIT, LOCK = "config.json", "vocabulary.json", "split.json", "run.lock"
LARGEST_CONFIG, LARGEST_PART = 2**20, 2**27
"""Most bytes of config.json, and of each of the next two."""
Value = bool | int | float | str | list[str] | None
TEACHERS = [f"teacher-{number}.pack" for number in range(1, MOST_TEACHERS + 1)]
"""Packs of the runs whose predictions are targets."""
UNFINISHED = {LOCK, VOCABULARY, SPLIT, STORE, file_name(0), *TEACHERS}
"""Files of a run's folder during creation; config.json, which makes it a run, comes last."""
FILES = UNFINISHED | {CONFIG, "metrics.jsonl", "result.json"}
"""The files that flashmore writes to a run's folder, except further checkpoints and TensorBoard events."""
MOST_FILES = 10_000
"""Most files in a run's folder; TensorBoard adds one each time training resumes."""


@dataclass(frozen=True)
class Settings:
    """The settings that a run was created from: the config as requested and as resolved, as JSON values."""

    requested: dict[str, Any]
    config: dict[str, Any]
    model: ModelConfig
    vocabulary: Vocabulary
    split: Split
    text: LongText | None
    versions: dict[str, str]
    """Versions of `flashmore` and `torch` that created the run."""
    packed: bool = False
    """Whether these are those of a pack, which may lack the items."""
    stored: StoredItems | None = None
    """A prepared list, whose items are not in `split`."""
    teachers: tuple[str, ...] = ()
    """SHA-256 of the packs in the folder, `TEACHERS`."""


@dataclass(frozen=True)
class _Config:
    """config.json without its checksum."""

    format: int
    versions: dict[str, str]
    requested: dict[str, Value]
    config: dict[str, Value]
    model: ModelConfig
    files: dict[str, str]
    packed: bool


@dataclass(frozen=True)
class _StoredSplit(Split):
    """split.json."""

    text: LongText | None = None
    stored: StoredItems | None = None


def encode(settings: Settings) -> dict[str, bytes]:
    """Encode the files, by name; a DataError for too many items."""
    split = settings.split
    items = split.train, split.validation, split.test, split.leak_share, split.weights
    parts = _StoredSplit(*items, settings.text, settings.stored)
    files = {
        VOCABULARY: records.encode(asdict(settings.vocabulary), indent=None),
        SPLIT: msgspec.json.encode(parts),  # many times faster than json and asdict, for millions of items
    }
    count = count_values(files[SPLIT])
    if len(files[SPLIT]) > LARGEST_PART or count > MOST_VALUES:
        wanted = f"at most {MOST_VALUES:,} items and commas in them, and {LARGEST_PART:,} bytes in total"
        found = f"{count:,}, and {len(files[SPLIT]):,} bytes"
        raise DataError(wanted, found, "a list made by `flashmore prepare`, or fewer items")
    digests = {name: records.digest(data) for name, data in files.items()}
    digests |= dict(zip(TEACHERS, settings.teachers, strict=False))
    config = _Config(
        FORMAT,
        settings.versions,
        settings.requested,
        settings.config,
        settings.model,
        digests,
        settings.packed,
    )
    return {**files, CONFIG: records.encode(records.seal(asdict(config)))}


def versions_here() -> dict[str, str]:
    """Installed versions of `flashmore` and `torch`."""
    return {"flashmore": version("flashmore"), "torch": str(torch.__version__)}


def read(folder: Path) -> tuple[Settings, str]:
    """Read and validate the three files; returns the settings and the SHA-256 of config.json."""
    require_run(folder)
    path = folder / CONFIG
    data = read_regular(path, LARGEST_CONFIG)
    record = records.decode(data, path)
    if record.get("format") != FORMAT:
        found = f"format {str(record.get('format'))[:20]}, which this version of flashmore does not support"
        valid = "a run of this version, or the version of flashmore that made the run"
        raise RunError(f"format {FORMAT} in {path}", found, valid)
    config = records.convert(records.unseal(record, path), _Config, f"the settings of a run in {path}")
    split, vocabulary = (_read_part(folder / name, config) for name in (SPLIT, VOCABULARY))
    parts = records.convert(split, _StoredSplit, f"the parts in {folder / SPLIT}")
    settings = Settings(
        config.requested,
        config.config,
        config.model,
        records.convert(vocabulary, Vocabulary, f"the vocabulary in {folder / VOCABULARY}"),
        Split(parts.train, parts.validation, parts.test, parts.leak_share, parts.weights),
        parts.text,
        config.versions,
        config.packed,
        parts.stored,
        tuple(config.files[name] for name in TEACHERS if name in config.files),
    )
    _require_fit(settings, folder)
    return settings, records.digest(data)


def _read_part(path: Path, config: _Config) -> dict[str, Any]:
    data = read_regular(path, LARGEST_PART)
    expected, found = str(config.files.get(path.name)), records.digest(data)
    if found != expected:
        described = f"{len(data):,} bytes with SHA-256 {found[:12]}…: truncated or altered"
        raise RunError(f"{path} with SHA-256 {expected[:12]}…", described, INTACT)
    return records.decode(data, path)


def _require_fit(settings: Settings, folder: Path) -> None:
    """Check consistency: the checksums are right, so inconsistent values were written by hand."""

    def require(holds: bool, wanted: str, found: str) -> None:
        if not holds:
            raise RunError(f"{wanted} in {folder}", found, INTACT)

    model, vocabulary, text = settings.model, settings.vocabulary, settings.text
    stray = NOT_TEXT.findall("".join(vocabulary.characters))
    require(not stray, "characters that a text may hold", ", ".join(f"U+{ord(c):04X}" for c in stray[:3]))
    ids = vocabulary.size if text is None else len(vocabulary.characters)
    if text is None or text.kind == "characters":
        require(ids == model.vocab_size, f"a model for {ids} ids", f"one for {model.vocab_size} ids")
    items = settings.split.train + settings.split.validation + settings.split.test
    if text is not None:
        require(settings.stored is None, "a run on one long text", "a list as well")
        require(not items, "a run on one long text", f"{len(items)} items as well")
        require(settings.split.weights is None, "a run on one long text", "weights of items as well")
        require(text.largest < model.vocab_size, "ids that the model has", f"the id {text.largest}")
        fit = text.order is None or tuple(sorted(text.order)) == vocabulary.characters
        require(fit, "a prepared text with the characters of the vocabulary", "others")
        sizes = [stop - start for start, stop in vars(text.parts).values()]
        short = any(0 < size <= model.block_size for size in sizes) or not sizes[0]
        require(not short, f"parts of more than {model.block_size} ids", f"parts of {sizes} ids")
        if text.kind == "random":
            facts = random_facts(model.block_size, model.vocab_size)
            found = (text.count, text.largest, text.origin)
            require(found == facts, f"random ids as {facts}", f"{found}")
        return
    if (stored := settings.stored) is not None:
        require(settings.split == Split((), (), (), None), "a run on a prepared list", "other items as well")
        require(stored.vocabulary == vocabulary, "a list of the vocabulary's characters", "others")
        require(
            model.block_size <= MAX_LENGTH + 1,
            f"a context of at most {MAX_LENGTH + 1}",
            f"{model.block_size}",
        )
        return
    if settings.packed and not items:
        require(settings.split.weights is None, "a pack without items", "weights of items")
        return
    require(bool(settings.split.train), "items to train on", "none")
    if (weights := settings.split.weights) is not None:
        for name, values in vars(weights).items():
            count = len(getattr(settings.split, name))
            require(len(values) == count, f"{count} weights of the {name} part", f"{len(values)}")
        every = [value for values in vars(weights).values() for value in values]
        fit = min(every) > 0 and math.isfinite(sum(every))
        require(fit, "weights above 0 with a finite sum", "other values")
    shortest, longest = min(map(len, items)), max(map(len, items))
    require(
        shortest > 0 and longest == model.block_size - 1 <= MAX_LENGTH,
        f"items of 1 to {MAX_LENGTH} characters, and a context one longer than the longest",
        f"{shortest} to {longest} characters, and a context of {model.block_size}",
    )
    unknown = set("".join(items)) - set(vocabulary.characters)
    require(not unknown, "items of the vocabulary's characters", f"{len(unknown)} others")


def is_run(path: Path) -> bool:
    """Whether a run is at `path`, not nothing, an empty folder, or the remains of a killed creation.

    Raises:
        RunError: it is a file, or a folder with other content, which a new run could overwrite.
        StorageError: a disk operation failed.
    """
    wanted = f"a new or empty folder at {path}"
    with disk_errors(wanted, path):
        if not path.is_dir():
            if path.exists():
                raise RunError(wanted, "a file", "another path")
            return False
        names = sorted(entry.name for entry in path.iterdir())
    if CONFIG in names:
        return True
    foreign = [name for name in names if name not in UNFINISHED and not is_temporary(name)]
    if foreign or (names and LOCK not in names):
        listed = foreign or names
        shown = ", ".join(listed[:3]) + (", …" if len(listed) > 3 else "")
        raise RunError(wanted, f"a folder that contains {shown}", "another folder, or empty this one")
    return False


def _said(value: Value) -> str:
    return "(default)" if value is None else repr(value)


def require_same(run: Settings, asked: Settings, path: Path) -> None:
    """Refuse to resume a run started with other options or data, with a RunError that names them."""
    found = ", ".join(
        f"{name} {_said(run.requested.get(name))} instead of {_said(value)}"
        for name, value in asked.requested.items()
        if name not in ("file", *CHANGEABLE) and value != run.requested.get(name)
    )
    text = run.text and replace(run.text, store_sha256=None)  # as before its token file was written
    if not found and (run.split, run.vocabulary, text, run.stored) != (
        asked.split,
        asked.vocabulary,
        asked.text,
        asked.stored,
    ):
        found = "different data"
    if found:
        raise RunError(
            f"a new or empty folder at {path}, or a run started by the same command",
            f"a run with {found}",
            f"another folder; to resume this run: flashmore train --resume {shlex.quote(str(path))}",
        )


def require_run(folder: Path) -> None:
    """Refuse a folder that is not a run, or that contains anything but regular files.

    Raises:
        RunError: naming what was found.
        StorageError: a disk operation failed.
    """

    def refuse(found: str) -> RunError:
        valid = "the folder of a run, made by `flashmore train --out FOLDER`"
        return RunError(f"a run at {folder}", found, valid)

    with disk_errors(f"a run at {folder}", folder):
        if not folder.exists():
            raise refuse("no such folder")
        if not folder.is_dir():
            raise refuse("a file")
        entries = {}
        for path in folder.iterdir():
            with suppress(FileNotFoundError):  # the training process has renamed a file meanwhile
                entries[path.name] = path.lstat()
            if len(entries) > MOST_FILES:
                raise refuse(f"a folder of more than {MOST_FILES:,} files")
    if CONFIG not in entries:
        raise refuse(f"a folder without {CONFIG}")
    for name, status in entries.items():
        found = why_not_regular(status)
        if found is not None and (found != "a folder" or name in FILES or step_of(name) is not None):
            raise RunError(f"regular files in the run {folder}", f"{name}, {found}", INTACT)
