"""How much a loss varies: the same training on several random splits."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from flashmore.config import TrainConfig
from flashmore.data.items import MAKEMORE, parse_shares
from flashmore.errors import ConfigError, Interrupted
from flashmore.terminal import say
from flashmore.training.loop import train


def losses_of_splits(config: TrainConfig, splits: int, first: float | None = None) -> Iterator[float]:
    """Train on several splits, with `split_seed`, `split_seed + 1`, …; the runs are not kept.

    Args:
        config: items, whose split has a test part and is random.
        splits: how many.
        first: the test loss on the first split, if it is known.

    Yields:
        The test loss of each split, in nats per character.

    Raises:
        ConfigError: data that has no random split with a test part. Otherwise as for `train`.
        KeyboardInterrupt: Ctrl-C.
    """
    require_random_splits(config, splits)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(splits):
            if number == 0 and first is not None:
                yield first
                continue
            other = replace(config, split_seed=config.split_seed + number)
            try:
                loss = train(other, Path(folder) / str(number)).test_loss
            except Interrupted:
                raise KeyboardInterrupt from None
            assert loss is not None
            say(f"split {number + 1} of {splits}: test loss {loss:.4f}")
            yield loss


def require_random_splits(config: TrainConfig, splits: int) -> None:
    """Refuse data without a random split or a test part, and a seed that has no successors."""
    found = config.read_once
    if config.mode == "text":
        found = "--mode text"
    elif config.split == MAKEMORE or parse_shares(config.split)[2] == 0:
        found = f"--split {config.split}"
    elif config.teacher:
        found = "--teacher, whose runs have one and the same split"
    if found:
        raise ConfigError("a file of items with a random test split for --splits", found, "--splits 1")
    replace(config, split_seed=config.split_seed + splits - 1)
