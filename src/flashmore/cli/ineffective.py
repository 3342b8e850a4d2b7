"""Refuses options that would have no effect together with the others."""

from collections.abc import Callable, Sequence

from flashmore.cli.parse import options_in
from flashmore.config import TrainConfig
from flashmore.errors import ConfigError
from flashmore.specs import models


def _acts(option: str) -> tuple[Callable[[TrainConfig], bool], str]:
    able = [name for name, spec in models().items() if option in spec.options]
    return (lambda config: config.model in able), f"--model {' or '.join(able)}"


RULES: dict[str, tuple[Callable[[TrainConfig], bool], str]] = {
    "--attention": (lambda c: c.attention == "auto" or _acts("attention")[0](c), _acts("attention")[1]),
    "--attention-dropout": _acts("attention_dropout"),
    "--n-head": _acts("n_head"),
    "--n-layer": _acts("n_layer"),
    "--n-embd": _acts("n_embd"),
    "--dropout": _acts("dropout"),
    "--muon-learning-rate": (lambda c: c.optimizer == "muon", "--optimizer muon"),
    "--min-lr-ratio": (lambda c: c.lr_schedule == "cosine", "--lr-schedule cosine"),
    "--split-seed": (
        lambda c: c.mode == "items" and c.split != "makemore",
        "shares of items, such as 80/10/10",
    ),
    "--encoding": (lambda c: c.file is not None, "a text file"),
}
"""For each option, whether it has an effect, and what it would need."""


def refuse_ineffective(config: TrainConfig, argv: Sequence[str], unused: Sequence[str] = ()) -> None:
    """Refuse given options that have no effect on this config.

    Args:
        config: the parsed config.
        argv: the arguments.
        unused: config options that this command does not use.

    Raises:
        ConfigError: the first of them.
    """
    given = options_in(argv)
    for option in unused:
        if option in given:
            raise ConfigError("options that change what is measured", option, f"the same without {option}")
    for option, (acts, needed) in RULES.items():
        if option in given and not acts(config):
            found = f"it changes nothing with {_said(config, option)}"
            raise ConfigError(f"{option} with {needed}", found, f"{needed}, or no {option}")


def _said(config: TrainConfig, option: str) -> str:
    if option == "--encoding":
        return "the built-in names"
    if option == "--split-seed":
        return "--mode text" if config.mode == "text" else f"--split {config.split}"
    if option == "--min-lr-ratio":
        return f"--lr-schedule {config.lr_schedule}"
    if option == "--muon-learning-rate":
        return f"--optimizer {config.optimizer}"
    return f"--model {config.model}"
