"""What a compiled training step depends on, and the sizes to which it is padded.

A step depends on sizes and constants alone, never on data, so runs on other lists share it: vocabulary and
context are padded to multiples, for which the added parameters are zero and stay so.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashmore.backends.packed import Segments
from flashmore.config import TrainConfig
from flashmore.data.batches import IGNORE
from flashmore.measuring.environment import cpu_name
from flashmore.models.config import ModelConfig
from flashmore.models.registry import without_values
from flashmore.ranks import world_size
from flashmore.specs import model_spec
from flashmore.training.dataset import Batch, shaped

CACHE_VERSION = 1
VOCABULARY_MULTIPLE = 32
CONTEXT_MULTIPLE = 8
"""To these multiples vocabulary and context are padded, where the model's parameters allow it."""
TOKENS_MULTIPLE = 16
"""To this multiple the packed tokens of a batch are padded, because oneDNN generates code for each number."""
TOKEN_INPUTS = (7, 8, 9, 10, 13)
"""Inputs of a packed step with a row for each token: ids, targets, positions, places and soft targets."""
_CONSTANTS = ("optimizer", "beta1", "beta2", "grad_clip", "dtype")
"""The options that are constants of a step. Learning rates and weight decay are inputs."""
_CODE = (
    "models/*.py", "backends/*.py", "training/compiled/*.py",
    "training/dataset.py", "training/optimizers.py", "training/step.py",
)  # fmt: skip
"""The modules of which a step consists."""


@dataclass(frozen=True)
class Program:
    """Everything that a compiled step depends on, but for the machine, torch and the code."""

    model: ModelConfig
    """The model with padded sizes."""
    constants: dict[str, Any]
    """The values of the options that are constants of the step."""
    rows: int
    """B, items or windows of a batch."""
    packed: bool
    """Whether items are concatenated without padding; else rows are as long as the context."""
    mode: str
    """torch.compile's mode."""
    threads: int
    parameters: str
    """The dtype of the parameters."""

    @property
    def digest(self) -> str:
        """A name for it on this machine, with this torch and this code."""
        key = {
            "version": CACHE_VERSION,
            "program": asdict(self),
            "torch": [torch.__version__, torch.version.git_version],
            "cpu": [cpu_name(), torch.backends.cpu.get_cpu_capability()],
            "code": _code_digest(),
            "options": sorted(_compiler_options()),
        }
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]

    def structure(self) -> nn.Module:
        """The model in training mode, without values."""
        return without_values(self.model).train()

    def config(self) -> TrainConfig:
        """A config with these constants."""
        return TrainConfig(model=self.model.model, weight_decay=0.0, **self.constants)


def program_of(
    config: TrainConfig, model_config: ModelConfig, device: torch.device, speedups: Collection[str]
) -> Program | None:
    """The program of a run's compiled step; None if `torch.compile` compiles it.

    That is so on a GPU, where Triton compiles its kernels, where the gradient is summed over slices or
    processes between the two halves of a step, and for models of other packages, whose code may change.
    """
    if device.type != "cpu" or config.slices or config.grad_accum > 1 or world_size() > 1:
        return None
    if not model_spec(model_config.model).target.startswith("flashmore."):
        return None
    sizes = replace(model_config, init="torch")  # how weights start is no part of a step
    if pads(sizes):
        vocab_size = _multiple(sizes.vocab_size, VOCABULARY_MULTIPLE)
        sizes = replace(sizes, vocab_size=vocab_size, block_size=padded_context(sizes.block_size))
    constants = {name: getattr(config, name) for name in _CONSTANTS}
    constants["ngram_smoothing"] = config.soft_weight  # wherever they are from
    constants["ngram_items"] = 0.5 if config.ngram_items else 0.0  # any share has the same temperature
    packed, dtype = "pack" in speedups, str(torch.get_default_dtype())
    return Program(
        sizes, constants, config.batch_size, packed, mode_of(speedups), torch.get_num_threads(), dtype
    )


def mode_of(speedups: Collection[str]) -> str:
    """The mode of torch.compile for these speed-ups."""
    return "max-autotune-no-cudagraphs" if "max-autotune" in speedups else "default"


def pads(model_config: ModelConfig) -> bool:
    """Whether a model may have rows in its tables that no id and no position uses."""
    return model_spec(model_config.model).packed and model_config.padding_multiple == 1


def padded_context(block_size: int) -> int:
    """The context for which a step is compiled."""
    return _multiple(block_size, CONTEXT_MULTIPLE)


def _multiple(size: int, of: int) -> int:
    return -(-size // of) * of


def _compiler_options() -> Iterator[tuple[str, str]]:
    """The variables that set options of PyTorch's compiler."""
    for name, value in os.environ.items():
        if name.startswith("TORCHINDUCTOR_") and name != "TORCHINDUCTOR_CACHE_DIR":
            yield name, value


@cache
def _code_digest() -> str:
    """A digest of the code of which steps consist: after a change they must be compiled again."""
    package = Path(__file__).parents[2]
    files = sorted(path for pattern in _CODE for path in package.glob(pattern))
    texts = (f"{path.name}\0{path.read_text(encoding='utf-8')}\0" for path in files)
    return hashlib.sha256("".join(texts).encode()).hexdigest()


def inputs_of(program: Program, batch: Batch) -> tuple[Tensor, ...]:
    """The tensors of a batch in the order in which a step takes them, with the padded sizes."""
    V, T = program.model.vocab_size, program.model.block_size
    segments, more = batch.segments, T - batch.fixed_sizes[1]
    ids, targets, smooth = batch.ids, batch.targets, batch.soft_targets
    extra: tuple[Tensor, ...] = ()
    assert batch.fixed_sizes[0] == program.rows
    if segments is None:
        ids, targets = F.pad(ids, (0, more)), F.pad(targets, (0, more), value=IGNORE)  # (B, T)
        smooth = None if smooth is None else F.pad(smooth, (0, 0, 0, more))
    else:
        rows = (x.view(program.rows, -1) for x in (segments.tokens, segments.real))
        tokens, real = (F.pad(x, (0, more)).flatten() for x in rows)
        places = segments.places + segments.places // segments.longest * more
        N = len(ids)
        added = min(_multiple(N, TOKENS_MULTIPLE), len(real)) - N
        if added:
            # Additional tokens read from a place that is padding, which gives them no gradient.
            places = F.pad(places, (0, added), value=int(real.byte().argmin()))
            ids, positions = (F.pad(x, (0, added)) for x in (ids, segments.positions))
            targets = F.pad(targets, (0, added), value=IGNORE)
            smooth = None if smooth is None else F.pad(smooth, (0, 0, 0, added))
        else:
            positions = segments.positions
        extra = (positions, places, tokens, real)
    if smooth is not None:
        extra = (*extra, F.pad(smooth, (0, V - smooth.size(-1))))
    return ids, targets, *extra


def batch_of(program: Program, inputs: Sequence[Tensor]) -> Batch:
    """A batch from the tensors of `inputs_of`."""
    ids, targets, *extra = inputs
    segments = None
    if program.packed:
        positions, places, tokens, real, *extra = extra
        segments = Segments(program.model.block_size, positions, places, tokens, real)
    return Batch(ids, targets, segments, extra[0] if extra else None)


def example_of(program: Program) -> Batch:
    """A batch for tracing, the same for all lists, so that all of them make the same library."""
    B, T, V = program.rows, program.model.block_size, program.model.vocab_size
    ids = torch.zeros(B, T, dtype=torch.int64)
    lengths = torch.full((B,), max(2, T // 2) if program.packed else T)
    batch = shaped(ids, ids, lengths, "packed" if program.packed else "padded")
    if not program.constants["ngram_smoothing"]:
        return batch
    return replace(batch, soft_targets=torch.zeros(*batch.ids.shape, V))
