"""config.json, vocabulary.json and split.json: what a run was made from, written once.

config.json is sealed and holds the SHA-256 of the other two, so that the three belong together.
"""

import dataclasses
import shlex
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from flashmore.data.long_text import LongText
from flashmore.data.split import Split
from flashmore.data.vocabulary import Vocabulary
from flashmore.errors import DataError, RecipeError, RunError
from flashmore.models.config import ModelConfig
from flashmore.runs import records
from flashmore.runs.storage import disk_errors

FORMAT = 1
"""Version of the folder's layout; it grows with every change that an older flashmore cannot read."""

CONFIG, VOCABULARY, SPLIT = "config.json", "vocabulary.json", "split.json"
_A_RUN = "the folder of a run, made by `flashmore train --out FOLDER`"


@dataclass(frozen=True)
class Settings:
    """What a run was made from."""

    recipe: dict[str, Any]
    model: ModelConfig
    vocabulary: Vocabulary
    split: Split
    versions: dict[str, str]
    text: LongText | None


def encode(
    recipe: dict[str, Any],
    model: ModelConfig,
    vocabulary: Vocabulary,
    split: Split,
    text: LongText | None = None,
) -> dict[str, bytes]:
    """Give the files by name. config.json, which makes a folder a run, comes last.

    Raises:
        ValueError, TypeError: the recipe holds what JSON does not know.
    """
    files = {
        VOCABULARY: records.encode(vocabulary.to_json(), indent=None),
        SPLIT: records.encode(dataclasses.asdict(split) | _text_to_json(text), indent=None),
    }
    config = {
        "format": FORMAT,
        "versions": {"flashmore": version("flashmore"), "torch": str(torch.__version__)},
        "recipe": recipe,
        "model": dataclasses.asdict(model),
        "files": {name: records.digest(data) for name, data in files.items()},
    }
    return {**files, CONFIG: records.encode(records.seal(config))}


def read(folder: Path) -> Settings:
    """Read and check the three files.

    Raises:
        RunError: the folder is no run or of an unknown format, or a file is missing, cut off or altered.
        StorageError: the disk does not give the files.
    """
    _require_run(folder)
    config = _read_config(folder / CONFIG)
    try:
        model = _decode_model(config["model"])
        vocabulary = Vocabulary.from_json(_read_part(folder / VOCABULARY, config))
        parts = _read_part(folder / SPLIT, config)
        text = LongText.from_json(parts["text"]) if "text" in parts else None
        split = _decode_split(parts)
        settings = Settings(dict(config["recipe"]), model, vocabulary, split, dict(config["versions"]), text)
    # The checksums are right, so these are settings that somebody wrote by hand.
    except (DataError, RecipeError) as error:
        raise RunError(f"the settings of a run in {folder}", error.found, records.INTACT) from None
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"the settings of a run in {folder}", repr(error), records.INTACT) from None
    wanted = _ids_needed(vocabulary, text)
    if wanted is not None and wanted != model.vocabulary_size:
        raise RunError(
            f"a model for the {wanted} ids of {folder / VOCABULARY}",
            f"one for {model.vocabulary_size} ids",
            records.INTACT,
        )
    return settings


def require_free(path: Path) -> None:
    """Refuse a path at which something stands that a new run could harm.

    Raises:
        RunError: it is a file, or a folder that holds something.
        StorageError: the disk does not say.
    """
    wanted = f"a new or empty folder at {path}"
    with disk_errors(wanted, path):
        if path.is_dir():
            names = sorted(entry.name for entry in path.iterdir())
            if CONFIG in names:
                raise RunError(
                    wanted,
                    "a run",
                    f"another folder; to go on with this one: --resume {shlex.quote(str(path))}",
                )
            if names:
                shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
                raise RunError(wanted, f"a folder that holds {shown}", "another folder, or this one emptied")
        elif path.exists():
            raise RunError(wanted, "a file", "another path")


def _require_run(folder: Path) -> None:
    wanted = f"a run at {folder}"
    with disk_errors(wanted, folder):
        if not folder.exists():
            raise RunError(wanted, "no such folder", _A_RUN)
        if not folder.is_dir():
            raise RunError(wanted, "a file", _A_RUN)
        if not (folder / CONFIG).exists():
            raise RunError(wanted, f"a folder without {CONFIG}", _A_RUN)


def _read_config(path: Path) -> dict[str, Any]:
    config = records.decode(records.read_file(path), path)
    if config.get("format") != FORMAT:
        raise RunError(
            f"format {FORMAT} in {path}",
            f"format {config.get('format')!r}, which this version of flashmore does not know",
            "a run of this version, or the version of flashmore that made it",
        )
    records.check_seal(config, path)
    return config


def _read_part(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    data = records.read_file(path)
    records.check_digest(data, config["files"][path.name], path)
    return records.decode(data, path)


def _decode_model(values: dict[str, Any]) -> ModelConfig:
    for field in dataclasses.fields(ModelConfig):
        kinds = (int, float) if field.type is float else (field.type,)
        if type(values[field.name]) not in kinds:
            raise TypeError(f"{field.name} = {values[field.name]!r}")
    return ModelConfig(**values)


def _text_to_json(text: LongText | None) -> dict[str, Any]:
    return {} if text is None else {"text": text.to_json()}


def _ids_needed(vocabulary: Vocabulary, text: LongText | None) -> int | None:
    """A long text has no START and STOP; ids that were given have no characters to count."""
    if text is None:
        return vocabulary.size
    return len(vocabulary.characters) if text.kind == "characters" else None


def _decode_split(values: dict[str, Any]) -> Split:
    parts = {name: tuple(values[name]) for name in ("train", "validation", "test")}
    if not all(isinstance(item, str) for part in parts.values() for item in part):
        raise TypeError("an item that is no text")
    leak_share = values["leak_share"]
    if not isinstance(leak_share, float | None):
        raise TypeError(f"leak_share = {leak_share!r}")
    return Split(**parts, leak_share=leak_share)
