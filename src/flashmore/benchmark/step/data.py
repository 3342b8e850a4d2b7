"""The data of the steps: padded names as in training, or a stream of names split into rows."""

from dataclasses import dataclass, replace

import torch

from flashmore.config import TrainConfig
from flashmore.data.batches import Sequences, encode_items
from flashmore.data.vocabulary import EOS
from flashmore.errors import ConfigError
from flashmore.models.config import ModelConfig
from flashmore.specs import model_spec
from flashmore.training.corpus import Corpus, read_corpus
from flashmore.training.dataset import ItemDataset
from flashmore.training.resolve import resolve_device, resolve_model


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

    def dataset(self) -> ItemDataset:
        """The data in batches."""
        return ItemDataset(self.data, self.config.batch_size, self.config.seed)


def task_at(config: TrainConfig, context: int | None, *, shrink_batch: bool) -> Task:
    """Read the data and prepare it for one context.

    Args:
        config: data, model and training parameters.
        context: T, for rows from a stream of all training names; None means the data's own, with one padded
            name per row, as in training.
        shrink_batch: use fewer rows if they are longer, so that a step has about as many positions as with
            the data's own context and the config's batch.

    Raises:
        DataError: see `flashmore.training.corpus.read_corpus`.
        ConfigError: a model without attention, a context below 1 or longer than the stream.
    """
    if not model_spec(config.model).attends:
        raise ConfigError("a model with attention", config.model, "--model transformer")
    device, corpus = resolve_device(config.device), read_items(config)
    model_config = resolve_model(config, corpus)
    if context is None:
        data = encode_items(corpus.split.train, corpus.vocabulary, corpus.block_size, device)
        return Task(config, model_config, data, device)
    data = stream(corpus, context, device)
    batch = config.batch_size
    notes: tuple[str, ...] = ()
    if shrink_batch:
        positions = config.batch_size * corpus.block_size
        batch = max(1, round(positions / context))
        if batch != config.batch_size:
            size = f"{batch * context:,} positions a step, against {positions:,}"
            notes = (
                f"batch {batch}, not {config.batch_size}, at context {context:,}: {size} "
                "(--batch-size sets it)",
            )
    return Task(
        replace(config, batch_size=batch), replace(model_config, block_size=context), data, device, notes
    )


def read_items(config: TrainConfig) -> Corpus:
    """Read the items of a config.

    Raises:
        DataError, ConfigError: see `read_corpus`; or it is on one long text.
    """
    if config.mode == "text":
        raise ConfigError("items, one a line", "--mode text", "--mode items, which is the default")
    return read_corpus(config)


def stream(corpus: Corpus, context: int, device: torch.device) -> Sequences:
    """All names of the training part, concatenated with EOS between them and split into rows of T.

    There is no padding: the target of a row's last position is the first id of the next row.

    Raises:
        ConfigError: a context below 1, or too little data for one row.
    """
    names = corpus.split.train
    length = sum(map(len, names)) + len(names)
    if not 1 <= context <= length:
        valid = f"1 to {length:,}, the length of all names of the training part one after the other"
        raise ConfigError("--lengths that the data can fill", f"{context:,}", valid)
    ids = [EOS]
    for name in names:
        ids += corpus.vocabulary.encode(name)
        ids.append(EOS)
    flat = torch.tensor(ids, device=device)  # (length + 1,)
    rows = length // context
    return Sequences(
        ids=flat[: rows * context].view(rows, context),  # (N·T,) -> (N, T)
        targets=flat[1 : rows * context + 1].view(rows, context),  # (N·T,) -> (N, T)
        lengths=torch.full((rows,), context, device=device),
    )
