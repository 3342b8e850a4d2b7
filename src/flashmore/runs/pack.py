"""A finished run as one file to hand on: a zip of stored files, which opens wherever a run's folder does.

The files are those of a run's folder, without the optimizer, the metrics, the lock and the paths of this
machine; and without the items, unless they are asked for. Checksums tie them together as in a folder.
"""

import io
import os
import struct
import tempfile
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, BinaryIO
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from flashmore.data.items import Split
from flashmore.errors import DataError, RunError
from flashmore.files import INTACT, open_input, replace_file
from flashmore.runs import checkpoint, records, settings
from flashmore.runs.checkpoint import Checkpoint, State

if TYPE_CHECKING:
    from flashmore.runs.folder import Run

LARGEST = 2**31 - 1
"""Most bytes of a pack: a larger zip needs an extension of the format."""
RESULT = "result.json"
_NAMES = {settings.CONFIG, settings.VOCABULARY, settings.SPLIT, RESULT}
"""The files of a pack, apart from its checkpoint."""
_END = struct.Struct("<4s4H2LH")
"""A zip's last bytes: signature, two disks, two counts of files, the directory's size and place, comment."""
_SIGNATURE = b"PK\x05\x06"
_LARGEST_DIRECTORY = 1000
_MADE = "an intact run of `flashmore train --out FOLDER`, or pack of `flashmore pack --out FILE`"
_BEYOND = b"PK\x06\x07"
"""What stands before these bytes if an extension replaces them."""


def write(run: "Run", result: dict[str, Any], out: Path, *, with_items: bool) -> None:
    """Pack the best weights of a finished run into the file `out`.

    Args:
        result: its result, as JSON values.
        with_items: whether the pack holds the items, and their weights.

    Raises:
        RunError: the run is damaged, or lacks the items.
        DataError: the pack would be too large.
        StorageError: writing failed; what was at `out` is kept.
    """
    kept = run.settings
    if with_items and not kept.split.train:
        found = "a pack without items"
        if kept.text is not None or kept.stored is not None:
            found = "a run on one long text" if kept.text is not None else "a run on a prepared list"
        raise RunError(f"the items of {run.path} with --with-items", found, "omit --with-items")

    def without_path(config: dict[str, Any]) -> dict[str, Any]:
        file = config.get("file")
        teachers = [_name(teacher) for teacher in config.get("teacher", ())]
        return config | {"file": _name(file) if isinstance(file, str) else None, "teacher": teachers}

    made = replace(
        kept,
        requested=without_path(kept.requested),
        config=without_path(kept.config),
        split=kept.split if with_items else Split((), (), (), kept.split.leak_share),
        text=kept.text and replace(kept.text, path=kept.text.path and f"/{_name(kept.text.path)}"),
        packed=True,
        stored=None,
        teachers=(),
    )
    files = settings.encode(made)
    digest = records.digest(files[settings.CONFIG])
    sealed = records.seal(result | {"run": out.name, "config_sha256": digest})
    files[RESULT] = records.encode(sealed)
    last, weights = run.load_state(), run.load_weights()
    last = replace(last, loss_scale=None, metrics_bytes=0, metrics_sha256=State(0, 0).metrics_sha256)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / checkpoint.file_name(last.step)
        checkpoint.save(path, digest, Checkpoint(weights, {}, last))
        files[path.name] = path.read_bytes()
    packed = io.BytesIO()
    with ZipFile(packed, "w", ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(ZipInfo(name), data)  # of 1980, whenever it was made
    if len(packed.getvalue()) > LARGEST:
        found = f"{len(packed.getvalue()):,} bytes"
        raise DataError(f"a pack of at most {LARGEST:,} bytes", found, "a smaller model, or the run's folder")
    replace_file(out, packed.getvalue())


def _name(path: str) -> str:
    return PureWindowsPath(path).name  # which takes both kinds of separators


def unpack(path: Path, folder: Path) -> None:
    """Write the files of a pack into an empty folder; what they hold is checked when they are read.

    Raises:
        RunError: it is no pack, or not as it was written.
    """
    wanted = f"a run at {path}"
    with open_input(path, wanted, again=True) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _END.size - 20))
        tail = file.read()
        if size > LARGEST or not tail[-_END.size :].startswith(_SIGNATURE) or len(tail) < _END.size:
            raise RunError(wanted, "a file that is not a pack, or is truncated", _MADE)
        # A zip may claim millions of files, which zipfile would list before any could be checked.
        *_, entries, directory, place, comment = _END.unpack(tail[-_END.size :])
        too_many = entries > len(_NAMES) + 1 or directory > _LARGEST_DIRECTORY
        whole = place + directory + _END.size == size  # zipfile also reads a zip behind other bytes
        if too_many or not whole or comment or tail.startswith(_BEYOND):
            raise RunError(wanted, "a zip file that is not a pack", INTACT)
        try:
            _extract(file, size, folder, wanted)
        except (BadZipFile, EOFError, NotImplementedError, ValueError, struct.error) as error:
            raise RunError(wanted, f"truncated or altered: {error}", INTACT) from None


def _extract(file: BinaryIO, size: int, folder: Path, wanted: str) -> None:
    with ZipFile(file) as archive:
        found = archive.infolist()
        names = [entry.filename for entry in found]
        others = [name for name in names if name not in _NAMES]
        if len(set(names)) < len(names) or any(checkpoint.step_of(name) is None for name in others):
            raise RunError(wanted, f"a zip of {', '.join(names)[:200]}", INTACT)
        if any(each.compress_type != ZIP_STORED or each.flag_bits & 1 for each in found):
            raise RunError(wanted, "a zip that is compressed or encrypted", INTACT)
        if sum(each.file_size for each in found) > size:
            raise RunError(wanted, "a zip whose files overlap", INTACT)
        for name in names:
            (folder / name).write_bytes(archive.read(name))
