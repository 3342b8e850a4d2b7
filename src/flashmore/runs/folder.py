"""A run's folder: what was asked for, what training began with, how it went, and where it stands."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from flashmore.data.long_text import LongText
from flashmore.data.split import Split
from flashmore.data.vocabulary import Vocabulary
from flashmore.errors import RunError
from flashmore.models.config import ModelConfig
from flashmore.runs import checkpoint as checkpoints
from flashmore.runs import metrics, records, settings
from flashmore.runs.checkpoint import Checkpoint, Name
from flashmore.runs.storage import replace_file, write_folder

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Run:
    """The folder of a run, opened. Nothing else is needed to go on, to generate or to label.

        config.json      format, versions, recipe, model; SHA-256 of the next two and of itself
        vocabulary.json  the characters
        split.json       the items of each part; of a long text, where each part lies
        tokens.bin       of a long text: its characters as 16-bit ids; tokens.json is its header
        metrics.jsonl    one line a logged step
        last/, best/     checkpoints: weights.safetensors, optimizer.pt, state.json
        result.json      written once at the end

    Opening and reading change nothing in the folder and never run code from it. `create` or `open` one.
    """

    path: Path
    recipe: dict[str, Any]
    """What was asked for, as JSON values."""
    model: ModelConfig
    vocabulary: Vocabulary
    split: Split
    """The items of each part; all empty for a run on a long text."""
    versions: dict[str, str]
    """Of `flashmore` and `torch` when the run was made."""
    text: LongText | None = None
    """The long text that was learned from; None for a run on items."""

    @classmethod
    def create(
        cls,
        path: Path | str,
        recipe: dict[str, Any],
        model: ModelConfig,
        vocabulary: Vocabulary,
        split: Split,
        text: LongText | None = None,
    ) -> "Run":
        """Make the folder of a new run, whole or not at all.

        Args:
            path: a folder that does not exist or is empty.
            recipe: JSON values; NaN and infinities are refused.
            model: the model's sizes.
            vocabulary: the characters; as many as the model's sizes say.
            split: the items of each part.
            text: the long text, where the run is on one.

        Raises:
            RunError: `path` is a file, or a folder that holds something.
            StorageError: the disk refused; nothing is left of the new folder.
        """
        path = Path(path)
        settings.require_free(path)
        write_folder(path, settings.encode(recipe, model, vocabulary, split, text))
        return cls.open(path)

    @classmethod
    def open(cls, path: Path | str) -> "Run":
        """Open the folder of a run.

        Raises:
            RunError: there is no such folder, it is no run, it is of an unknown format, or its
                configuration, vocabulary or split is missing, cut off or altered.
            StorageError: the disk does not give the files.
        """
        path = Path(path)
        found = settings.read(path)
        return cls(path, found.recipe, found.model, found.vocabulary, found.split, found.versions, found.text)

    def require_items(self, wanted: str) -> None:
        """Refuse what makes sense for items alone, where the run is on one long text.

        Args:
            wanted: what was asked for, such as `to score names`.

        Raises:
            RunError: the run is on a long text.
        """
        if self.text is not None:
            raise RunError(
                f"a run on items, {wanted}",
                f"{self.path}, a run on one long text (--mode text)",
                f"a run of --mode items; this one's losses are in {self._result}",
            )

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl.

        Args:
            line: JSON values, with `step` as a whole number; NaN and infinities are refused.

        Raises:
            StorageError: the disk refused; the earlier lines are whole.
        """
        metrics.append(self._metrics, line)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the lines of metrics.jsonl, without a last one that was cut off.

        Raises:
            RunError: a line was altered.
            StorageError: the file cannot be read.
        """
        return metrics.read(self._metrics)

    def truncate_metrics(self, step: int) -> None:
        """Remove the lines of steps after `step`, and a last line that was cut off.

        Raises:
            RunError: a line was altered.
            StorageError: the disk refused; the file is as it was.
        """
        metrics.truncate(self._metrics, step)

    def save_checkpoint(self, name: Name, checkpoint: Checkpoint) -> None:
        """Replace a checkpoint. Whatever moment the process dies at, a whole one stays.

        Raises:
            StorageError: the disk refused; the previous checkpoint is still there.
            ValueError, TypeError: the checkpoint's state holds what JSON does not know.
        """
        checkpoints.save(self.path, name, checkpoint)

    def load_checkpoint(self, name: Name, optimizer: bool = True) -> Checkpoint:
        """Read a checkpoint; `optimizer=False` leaves the optimizer's file unread.

        Raises:
            RunError: there is none, or a file of it is missing, cut off or altered.
            StorageError: a file cannot be read.
        """
        return checkpoints.load(self.path, name, optimizer)

    def has_checkpoint(self, name: Name) -> bool:
        """Say whether the run has this checkpoint."""
        return checkpoints.find(self.path, name) is not None

    def restore(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        """Copy the weights of a checkpoint into a model.

        Raises:
            RunError: names or shapes are not the model's; all of them are named, and the model is as it was.
        """
        wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        found = {name: tuple(value.shape) for name, value in checkpoint.weights.items()}
        if wanted != found:
            raise RunError(
                f"weights that fit the {self.model.model} of {self.path}",
                _differences(wanted, found),
                f"the version of flashmore that made this run: {self.versions.get('flashmore')}",
            )
        model.load_state_dict(checkpoint.weights)

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json.

        Raises:
            StorageError: the disk refused; an earlier result is still there.
            ValueError, TypeError: the result holds what JSON does not know.
        """
        replace_file(self._result, records.encode(result))

    def read_result(self) -> dict[str, Any] | None:
        """Read result.json; None while there is none.

        Raises:
            RunError: the file was cut off or altered.
            StorageError: the file cannot be read.
        """
        return (
            records.decode(records.read_file(self._result), self._result) if self._result.exists() else None
        )

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def _result(self) -> Path:
        return self.path / "result.json"


def _differences(wanted: Shapes, found: Shapes) -> str:
    missing = [f"missing: {name}" for name in wanted if name not in found]
    unknown = [f"unknown: {name}" for name in found if name not in wanted]
    misshapen = [
        f"{name} of shape {found[name]} instead of {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    return "; ".join(missing + unknown + misshapen)
