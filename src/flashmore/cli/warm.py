"""`flashmore warm`: compile a training step ahead of time."""

from collections.abc import Sequence
from dataclasses import dataclass

from flashmore.cli.parse import defaults, parse, refuse_ineffective
from flashmore.cli.waiting import Waiting
from flashmore.config import TrainConfig
from flashmore.terminal import say


@dataclass(frozen=True)
class Warm:
    """Compile the training step that `flashmore train` uses with the same options, and cache it.

    Later runs then train with the compiled step from the start, also on other lists whose batch size, model
    and other constants are the same; vocabulary and context are padded, so they may differ. `flashmore env`
    prints the cache's folder.
    """

    config: TrainConfig
    """Data, model and training, as for `flashmore train`."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore warm`."""
    command = parse(Warm, "warm", argv, Warm(defaults(argv)))
    refuse_ineffective(command.config, argv)

    from flashmore.training.warm import warm

    with Waiting("compiling the training step"):
        compiled = warm(command.config)
    say("compiled; later runs of this kind use it" if compiled else "this step is in the cache already")
    return 0
