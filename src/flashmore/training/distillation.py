"""Distillation: soft targets are the mean predictions of finished runs, the teachers.

Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (https://arxiv.org/abs/1503.02531).

Shape letters: B batch, T positions, P positions with a target, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from flashmore.config import TrainConfig
from flashmore.data.batches import IGNORE, Sequences
from flashmore.data.items import Split
from flashmore.data.vocabulary import Vocabulary
from flashmore.errors import RunError
from flashmore.generation.load import load_model
from flashmore.memory import largest_batch
from flashmore.models.packed import pack
from flashmore.runs import Run
from flashmore.runs.pack import write
from flashmore.runs.settings import TEACHERS
from flashmore.training.result import result_of


def open_teachers(config: TrainConfig, split: Split, vocabulary: Vocabulary) -> tuple[Run, ...]:
    """Open the runs that a config names as teachers.

    Raises:
        RunError: not a run, a damaged or unfinished one, or one on other items: it may know those on which
            the new run is evaluated.
    """
    runs = tuple(Run.open(path) for path in config.teacher)
    for run in runs:
        run.require_training_items("--teacher")
        if (run.split.train, run.split.validation, run.vocabulary) != (
            split.train,
            split.validation,
            vocabulary,
        ):
            valid = "runs on the same file with the same --split and --split-seed"
            raise RunError("teachers that were trained on the same items", f"{run.path}, on others", valid)
        if result_of(run) is None:
            found = f"{run.path}, which is unfinished"
            raise RunError("finished runs as teachers", found, f"finish it first: {run.resume_command()}")
    return runs


def keep_teachers(teachers: Sequence[Run], run: Run) -> None:
    """Put packs of the teachers into the folder of a run, which can then be resumed without them."""
    for name, teacher in zip(TEACHERS, teachers, strict=False):
        result = result_of(teacher)
        assert result is not None
        write(teacher, result.to_json(), run.path / name, with_items=False)


def kept_teachers(run: Run) -> tuple[Run, ...]:
    """The teachers of a run from the packs in its folder."""
    return tuple(Run.open(run.path / name) for name in TEACHERS[: len(run.config["teacher"])])


@torch.inference_mode()
def predictions(items: Sequences, teachers: Sequence[Run]) -> Tensor:
    """The mean of the teachers' distributions for every position with a target, (P, V) float32."""
    device = items.ids.device
    models = [pack(load_model(teacher, device)) for teacher in teachers]
    rows = min(largest_batch(teacher.model, items.ids.size(1)) for teacher in teachers)
    found = []
    for ids, targets in zip(torch.split(items.ids, rows), torch.split(items.targets, rows), strict=True):
        mean = torch.stack([model(ids.long()).softmax(-1) for model in models]).mean(0)  # (B, T, V)
        found.append(mean[targets != IGNORE])
    return torch.cat(found)
