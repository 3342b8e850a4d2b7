"""Resolves everything that a config leaves open for this machine, with the reasons."""

import sys
import time
from dataclasses import dataclass, fields, replace
from statistics import quantiles

import torch

from flashmore.backends.choose import Choice, Problem, choose
from flashmore.call import CallOptions
from flashmore.config import MOST_THREADS, ModelOptions, TrainConfig, without_effect
from flashmore.errors import BackendUnavailable, ConfigError, is_of_the_compiler, is_out_of_memory
from flashmore.memory import CGROUP, cpu_quota, free_bytes
from flashmore.models.config import ModelConfig
from flashmore.models.registry import parameters_of
from flashmore.parallel import ALONE, Ranks
from flashmore.ranks import local_rank, world_size
from flashmore.specs import model_spec
from flashmore.training.compiled.ahead import cached_attention
from flashmore.training.compiled.program import padded_context, program_of
from flashmore.training.corpus import Corpus
from flashmore.training.dataset import Dataset
from flashmore.training.decide import Quartiles, decide
from flashmore.training.fit import fit
from flashmore.training.memory import out_of_memory, require_memory
from flashmore.training.trainer import Trainer

PADDING_MULTIPLE = 64
"""Pad the vocabulary to a multiple of this for matmul efficiency."""
LARGEST_WIDTH = 2**16
"""Widest activation per position of a long text."""
TRAINED_BYTES = 16
"""Bytes per parameter: the weight, its gradient and AdamW's two moments in float32."""
WARM_UP, TIMED = 3, 8
"""Steps for timing an uncompiled step."""


@dataclass(frozen=True)
class Resolved:
    """A fully resolved config, from which a trainer is built."""

    config: TrainConfig
    """`speedups` holds the names of the enabled ones, or `none`."""
    model_config: ModelConfig
    """`attention` names a backend that runs here."""
    device: torch.device
    choice: Choice | None
    """Why this attention backend; None for a model without attention."""
    notes: tuple[str, ...]
    """Which speed-ups are used, and why."""
    later: tuple[str, ...] = ()
    """Speed-ups with which later runs would be faster, if their step was compiled by then; see `warm.py`."""

    def trainer(self, data: Dataset, ranks: Ranks = ALONE) -> Trainer:
        """Build the trainer."""
        return Trainer(self.config, self.model_config, data, self.device, self.config.speedups, ranks)


def resolve(config: TrainConfig, corpus: Corpus, device: torch.device) -> Resolved:
    """Resolve what a config leaves open: the model's sizes, the speed-ups, the attention backend.

    Raises:
        ConfigError, BackendUnavailable, TrainingFailed: see `resolve_speed`.
    """
    config, reasons = fit(config, corpus)
    data = corpus.datasets(config, device).train
    resolved = resolve_speed(config, resolve_model(config, corpus), device, data)
    return replace(resolved, notes=(*reasons, *resolved.notes))


def set_threads(config: TrainConfig) -> None:
    """Make this process use as many threads as the config says, or else as it may."""
    # PyTorch's default respects the CPU affinity, but not a container's quota.
    threads = config.threads_here or min(torch.get_num_threads(), cpu_quota(CGROUP) or MOST_THREADS)
    torch.set_num_threads(threads)


def resolve_device(name: str) -> torch.device:
    """The device with this name, or for `auto` the best one available.

    Raises:
        ConfigError: this machine has no such device.
    """
    mps = torch.backends.mps.is_available() and world_size() == 1  # which ranks cannot share
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": mps}
    if name == "auto":
        name = "cuda" if here["cuda"] else "mps" if here["mps"] else "cpu"
    if not here[name]:
        present = ", ".join(device for device, is_here in here.items() if is_here)
        raise ConfigError(
            f"--device {name}", f"torch {torch.__version__} finds none on {sys.platform}", present
        )
    return torch.device(name, local_rank()) if name == "cuda" and world_size() > 1 else torch.device(name)


def resolve_parallel(
    config: TrainConfig, model_config: ModelConfig, device: torch.device, ranks: Ranks
) -> TrainConfig:
    """Choose between a copy of the model on every rank and a sharded one, where that is left open.

    Raises:
        ConfigError: options that a sharded model does not support, or without effect in one process; slices
            that cannot be shared equally.
    """
    ranks.slices(config)
    if ranks.size == 1:
        if config.cpu_offload:
            raise without_effect("cpu_offload", "several ranks (torchrun)", "one process")
        return config
    if chosen := config.parallel == "auto":
        fits = TRAINED_BYTES * parameters_of(model_config) < free_bytes(device)
        config = replace(config, parallel="ddp" if fits else "fsdp")
    if config.parallel == "fsdp":
        unsupported = {
            f"--slices {config.slices}, but PyTorch has its own order of sharded sums": config.slices,
            "--optimizer muon, which needs whole matrices": config.optimizer == "muon",
            "--dtype float16, whose loss scale needs whole gradients": config.dtype == "float16",
            f"--samples-every {config.samples_every}, which needs a whole model": config.samples_every,
            "--cpu-offload on a CPU": config.cpu_offload and device.type == "cpu",
        }
        if found := [text for text, given in unsupported.items() if given]:
            wanted, valid = "options that --parallel fsdp supports", "--parallel ddp, or other options"
            if chosen:
                wanted = f"options that support a model too large for {device} as a whole (--parallel fsdp)"
            raise ConfigError(wanted, "; ".join(found), valid)
    return config


def resolve_model(config: TrainConfig, corpus: Corpus) -> ModelConfig:
    """The sizes of the model on this data; `attention` is not resolved yet.

    Raises:
        ConfigError: sizes that are invalid, or too wide for a long text.
    """
    sizes = model_config_of(config, corpus.vocab_size, corpus.block_size)
    width = model_spec(config.model).widest
    widest = width(sizes)
    grows = widest > width(replace(sizes, block_size=1))
    if corpus.text is not None and widest > LARGEST_WIDTH and grows:
        raise ConfigError(
            f"at most {LARGEST_WIDTH:,} activations per position",
            f"{widest:,} in the {config.model} with --block-size {corpus.block_size:,} "
            f"and --n-embd {config.n_embd:,}",
            "a smaller --block-size, a smaller --n-embd, or another --model",
        )
    return sizes


def model_config_of(config: TrainConfig, vocab_size: int, block_size: int) -> ModelConfig:
    """The model's options with a vocabulary and a context; `attention` is not resolved yet."""
    names = {field.name for field in fields(ModelOptions)} - {"attention"}
    options = {name: getattr(config, name) for name in names}
    return ModelConfig(vocab_size=vocab_size, block_size=block_size, **options)


def resolve_attention(
    name: str, config: TrainConfig, model_config: ModelConfig, device: torch.device, *, compiled: bool = False
) -> Choice | None:
    """Which backend trains this model here; None for a model without attention.

    Args:
        compiled: whether the whole step is compiled.

    Raises:
        BackendUnavailable: the backend `name` cannot run here.
    """
    if not model_spec(model_config.model).attends:
        return None
    length = model_config.block_size
    options = CallOptions(
        batch_size=config.batch_size,
        n_head=model_config.n_head,
        length=padded_context(length) if compiled else length,
        head_dim=model_config.n_embd // model_config.n_head,
        dtype=config.dtype,
        dropout=config.attention_dropout,
    )
    problem = Problem(options, device, compiled)
    try:
        return choose(name, problem)
    except Exception as error:
        if not (compiled and is_of_the_compiler(error)):
            raise
        # What becomes of the step then, its first call shows.
        return choose(name, replace(problem, compiled=False))


def resolve_speed(
    config: TrainConfig,
    model_config: ModelConfig,
    device: torch.device,
    data: Dataset,
    *,
    replaceable: bool = False,
    ranks: Ranks = ALONE,
) -> Resolved:
    """Decide the speed-ups and the attention backend of a model.

    Args:
        data: data for timing a few steps, if a decision needs that.
        ranks: the processes that share each batch; this one times its share alone.
        replaceable: leave out what cannot work here instead of refusing it: the run was made elsewhere.

    Raises:
        ConfigError: a speed-up requested by name cannot work here.
        BackendUnavailable: the requested attention backend cannot run here.
        TrainingFailed: a step does not fit in memory.
    """
    set_threads(config)  # before anything is measured

    def resolved(speedups: tuple[str, ...], notes: tuple[str, ...] = ()) -> Resolved:
        def chosen(name: str) -> Choice | None:
            compiled = "compile" in speedups
            cached = cached_attention(config, model_config, device, speedups) if compiled else None
            if cached is not None and name == config.attention and model_spec(config.model).attends:
                why = "the fastest when the cached step was compiled" if name == "auto" else "as requested"
                return Choice(cached, why)
            return resolve_attention(name, config, model_config, device, compiled=compiled)

        try:
            choice = chosen(config.attention)
        except BackendUnavailable as error:
            if not replaceable:
                raise
            notes += (f"{config.attention} attention, which this run used, is replaced: {error.found}",)
            choice = chosen("auto")
        model = model_config if choice is None else replace(model_config, attention=choice.backend)
        if "pad-vocab" in speedups:
            model = replace(model, padding_multiple=PADDING_MULTIPLE)
        named = replace(config, speedups=speedups or ("none",))
        return Resolved(named, model, device, choice, notes)

    def step_ms(speedups: tuple[str, ...]) -> Quartiles:
        trainer = resolved(speedups).trainer(data, replace(ranks, connected=False))
        require_memory(trainer)
        try:
            return _step_ms(trainer)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(trainer, error) from None

    def is_cached(speedups: tuple[str, ...]) -> bool:
        return cached_attention(config, model_config, device, speedups) is not None

    decision = decide(config, model_config, device, step_ms, is_cached, replaceable=replaceable)
    later = decision.later if program_of(config, model_config, device, decision.later) else ()
    return replace(resolved(decision.speedups, decision.notes), later=later)


def _step_ms(trainer: Trainer) -> Quartiles:
    """The quartiles of the time of a step, per update if one call makes several.

    On a CPU, the time that other programs took is not counted: they slow down compiling as much.
    """
    times_ms = []
    start, processor = time.perf_counter(), time.process_time()
    for _ in range(WARM_UP + TIMED):
        began, done = time.perf_counter(), trainer.done
        trainer.train_step(trainer.step.updates).item()
        times_ms.append(1000 * (time.perf_counter() - began) / (trainer.done - done))
    low, median, high = quantiles(times_ms[WARM_UP:], n=4, method="inclusive")
    share = 1.0
    if trainer.device.type == "cpu":
        share = min(1.0, (time.process_time() - processor) / (time.perf_counter() - start))
    return share * low, share * median, share * high
