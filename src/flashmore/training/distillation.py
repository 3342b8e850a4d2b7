"""Distillation: soft targets are the mean predictions of finished runs, the teachers.

Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (https://arxiv.org/abs/1503.02531).

Shape letters: B batch, T positions, P positions with a target, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from numpy.random import SeedSequence
from torch import Tensor

from flashmore.config import TrainConfig
from flashmore.data.batches import IGNORE, Sequences
from flashmore.data.items import Split
from flashmore.data.vocabulary import Vocabulary
from flashmore.errors import RunError
from flashmore.files import INTACT, read_regular
from flashmore.generation.load import load_model
from flashmore.memory import largest_batch
from flashmore.models.onednn import pack
from flashmore.runs import Run
from flashmore.runs.pack import LARGEST, write
from flashmore.runs.records import digest
from flashmore.runs.settings import TEACHERS
from flashmore.training.result import require_result

TEACHERS_STEPS = 5 / 8
"""Steps of a teacher for each step of the run that learns from it."""


def teacher_config(config: TrainConfig, number: int, steps: int) -> TrainConfig:
    """The config of a teacher that is trained first, counted from 1: another seed, fewer steps.

    Args:
        config: as requested, of the run that learns from it.
        number: the teacher's.
        steps: of the run that learns from it.
    """
    # PyTorch takes 32 bits of a seed.
    seed = int(SeedSequence((config.seed, number)).generate_state(1)[0])
    steps = math.ceil(steps * TEACHERS_STEPS)
    return replace(config, seed=seed, max_steps=steps, teachers=0, ngram_items=0.0)


def open_teachers(config: TrainConfig, split: Split, vocabulary: Vocabulary) -> tuple[Run, ...]:
    """Open the runs that a config names as teachers.

    Args:
        config: of the run that learns from them.
        split: of its items.
        vocabulary: of its items.

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
        require_result(run)
    return runs


def packs_of(teachers: Sequence[Run]) -> list[bytes]:
    """Packs of the teachers, for the folder of the run that learns from them: it resumes without theirs."""
    packs = []
    for name, teacher in zip(TEACHERS, teachers, strict=False):
        with TemporaryDirectory() as folder:
            write(teacher, require_result(teacher).to_json(), Path(folder, name), with_items=False)
            packs.append(Path(folder, name).read_bytes())
    return packs


def kept_teacher(run: Run, number: int) -> Run:
    """A teacher of a run from its pack in the run's folder, counted from 0.

    Raises:
        RunError: it is missing, or not the one that the run began with.
    """
    path, expected = run.path / TEACHERS[number], run.settings.teachers[number]
    if (found := digest(read_regular(path, LARGEST))) != expected:
        raise RunError(f"{path} with SHA-256 {expected[:12]}…", f"SHA-256 {found[:12]}…: altered", INTACT)
    return Run.open(path)


def kept_teachers(run: Run) -> tuple[Run, ...]:
    """All teachers of a run, from the packs in its folder."""
    return tuple(kept_teacher(run, number) for number in range(len(run.settings.teachers)))


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
