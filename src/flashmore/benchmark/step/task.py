"""The work of `bench step`: its data, its attention alone, and an estimate of its memory."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flashmore.backends.contract import attention
from flashmore.config import TrainConfig
from flashmore.data.batches import Sequences, encode_items
from flashmore.data.vocabulary import EOS
from flashmore.errors import ConfigError
from flashmore.models.config import ModelConfig
from flashmore.parallel import ALONE, Ranks
from flashmore.rules import AttentionCall
from flashmore.specs import backends, model_spec, usable
from flashmore.training.corpus import Corpus, read_corpus
from flashmore.training.dataset import ItemDataset
from flashmore.training.fit import fit
from flashmore.training.resolve import resolve_device, resolve_model, resolve_parallel
from flashmore.training.step import precision_of

KEPT_CHANNELS = 20
"""Numbers per position, layer and channel saved for backward: two layer norms, q, k, v, attention's output
and its copy, the sums, and 4 + 4 in the feed-forward."""
WORKING_CHANNELS = 12
"""The same for the working tensors of the widest operation, once."""
WORKING_SCORES = 3
"""Working (B, H, T, T) matrices besides the saved ones: gradients of the weights and the scores, a copy."""
TILE_BYTES = 2**20
"""Most scratch memory of a fused kernel per CPU thread."""


@dataclass(frozen=True)
class Task:
    """One model at one context: everything about a step except the attention."""

    config: TrainConfig
    """The config, with the batch size in use."""
    model_config: ModelConfig
    data: Sequences
    device: torch.device
    notes: tuple[str, ...] = ()
    """Deviations from the config, and why."""
    ranks: Ranks = ALONE
    """The processes that share each batch."""

    @property
    def rows(self) -> int:
        """Rows of a batch that are in memory together."""
        return self.config.batch_size // self.ranks.slices(self.config)[0][1]

    def dataset(self) -> ItemDataset:
        """The data in batches."""
        return ItemDataset(self.data, self.config.batch_size, self.config.seed)


def task_at(config: TrainConfig, context: int | None, *, shrink_batch: bool, ranks: Ranks = ALONE) -> Task:
    """Read the data and prepare it for one context.

    Args:
        context: T, for rows from a stream of all training names; None means the data's own, with one padded
            name per row, as in training.
        shrink_batch: use fewer of longer rows, so that a step has about as many positions as with the data's
            own context, and at least one for each slice.
        ranks: the processes that share each batch.

    Raises:
        DataError: see `flashmore.training.corpus.read_corpus`.
        ConfigError: a model without attention, a context below 1 or longer than the stream, a batch that the
            ranks cannot share equally.
    """
    device, asked = resolve_device(config.device), config

    def read() -> tuple[Corpus, TrainConfig, ModelConfig]:
        if not model_spec(asked.model).attends:
            raise ConfigError("a model with attention", asked.model, "--model transformer")
        return read_items(asked, device, ranks)

    corpus, config, model_config = ranks.of_rank_0(read)
    if context is None:
        data = encode_items(corpus.split.train, corpus.vocabulary, corpus.block_size, device)
        return Task(config, model_config, data, device, ranks=ranks)
    data = ranks.of_rank_0(lambda: _stream(corpus, context, torch.device("cpu"))).to(device)
    positions, slices = config.batch_size * corpus.block_size, ranks.slices(config)[0][1]
    batch = slices * max(1, round(positions / context / slices)) if shrink_batch else config.batch_size
    notes = []
    if batch != config.batch_size:
        size = f"{batch * context:,} positions a step, against {positions:,}"
        notes.append(
            f"batch {batch}, not {config.batch_size}, at context {context:,}: {size} (--batch-size sets it)"
        )
    config, model_config = replace(config, batch_size=batch), replace(model_config, block_size=context)
    return Task(config, model_config, data, device, tuple(notes), ranks)


def read_items(
    config: TrainConfig, device: torch.device, ranks: Ranks
) -> tuple[Corpus, TrainConfig, ModelConfig]:
    """Read the items of a config, and resolve its options and the model's sizes; not yet the attention.

    Raises:
        DataError, ConfigError: see `flashmore.training.corpus.read_corpus`; a long text or a prepared list;
            sizes or a batch that are refused.
    """
    if config.mode == "text":
        raise ConfigError("items, one per line", "--mode text", "--mode items, which is the default")
    corpus = read_corpus(config)
    if corpus.stored is not None:
        raise ConfigError("items, one per line", f"{config.file}, a prepared list", "a list in a text file")
    config = fit(config, corpus)[0]
    model_config = resolve_model(config, corpus)
    return corpus, resolve_parallel(config, model_config, device, ranks), model_config


def _stream(corpus: Corpus, context: int, device: torch.device) -> Sequences:
    """All names of the training part, with EOS between them, split into rows of T without padding."""
    names = corpus.split.train
    length = sum(map(len, names)) + len(names)
    if not 1 <= context <= length:
        valid = f"1 to {length:,}, the total length of the training names"
        raise ConfigError("--lengths that the data can fill", f"{context:,}", valid)
    ids = [EOS]
    for name in names:
        ids += [*corpus.vocabulary.encode(name), EOS]
    flat = torch.tensor(ids, device=device)  # (length + 1,)
    rows = length // context
    return Sequences(
        ids=flat[: rows * context].view(rows, context),  # (N·T,) -> (N, T)
        targets=flat[1 : rows * context + 1].view(rows, context),  # (N·T,) -> (N, T)
        lengths=torch.full((rows,), context, device=device),
    )


def attention_alone(backend: str, task: Task) -> Callable[[], object]:
    """Return a function that computes attention forward in every layer, then backward in every layer.

    Saved tensors stay in memory until their backward pass, as in a step. The call synchronises.
    """
    precision = precision_of(task.config, task.device)
    layers = [_like_in_the_model(task) for _ in range(task.model_config.n_layer)]
    leaves = [leaf for q, k, v, _ in layers for leaf in (q, k, v)]
    cotangents = [cotangent for *_, cotangent in layers]
    dropout_p = task.model_config.attention_dropout

    def run() -> None:
        with precision():
            outs = [
                attention(q, k, v, backend=backend, causal=True, dropout_p=dropout_p) for q, k, v, _ in layers
            ]
        gradients = torch.autograd.grad(outs, leaves, cotangents)
        gradients[-1].flatten()[0].item()  # synchronises

    return run


def _like_in_the_model(task: Task) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and the incoming gradient: (B, H, T, D), with the same memory layout as in the model."""
    model_config = task.model_config
    B, T, C, H = task.config.batch_size, model_config.block_size, model_config.n_embd, model_config.n_head
    dtype = getattr(torch, task.config.dtype)
    generator = torch.Generator().manual_seed(0)
    # q, k and v are slices of one matrix's rows, as the model's c_attn makes them.
    made = torch.randn(B, T, 3 * C, generator=generator).to(task.device, dtype)
    q, k, v = (
        part.view(B, T, H, C // H).transpose(1, 2).detach().requires_grad_()  # (B, T, C) -> (B, H, T, D)
        for part in made.chunk(3, dim=2)
    )
    cotangent = torch.randn(B, T, C, generator=generator).to(task.device, dtype)
    return q, k, v, cotangent.view(B, T, H, C // H).transpose(1, 2)  # (B, T, C) -> (B, H, T, D)


def activation_bytes(
    backend: str, model_config: ModelConfig, config: TrainConfig, *, device: str, threads: int = 1
) -> int:
    """Estimate the peak bytes of one step beyond the weights, their gradients and the moments.

    Counts the tensors saved for the backward pass, and the working tensors at the peak. `sdpa` counts as a
    fused kernel if PyTorch can choose one, else as `math`.
    """
    B, H, T, C = config.batch_size, model_config.n_head, model_config.block_size, model_config.n_embd
    positions, item = B * T, 4
    total = positions * C * (model_config.n_layer * KEPT_CHANNELS + WORKING_CHANNELS) * item
    total += 3 * positions * model_config.vocab_size * item  # logits, their softmax, their gradient
    size = (B, H, T, C // H)
    call = AttentionCall(size, size, size, config.dtype, device, dropout_p=config.attention_dropout)
    fused = [name for name, spec in backends().items() if spec.fused]
    if backend in fused or (backend == "sdpa" and any(name in fused for name in usable(call))):
        return total + threads * TILE_BYTES
    kept = working = item
    if backend == "manual" and config.dtype != "float32":
        # Autocast computes the softmax in float32 on a GPU, in 16 bits on a CPU; the values meet 16 bits.
        kept, working = (2, 2) if device == "cpu" else (item + 2, item)
    if config.attention_dropout:
        kept += working + 1  # what is left of the weights, and which ones are
    scores = B * H * T * T * (model_config.n_layer * kept + WORKING_SCORES * working)
    return total + scores + model_config.n_layer * T * T
