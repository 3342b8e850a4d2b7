"""`flashmore speedups`: the catalogue of documented speed-ups, and which of them work here."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from textwrap import wrap
from typing import Literal

from rich.text import Text

from flashmore.cli.parse import parse
from flashmore.cli.show import stdout
from flashmore.config import TrainConfig
from flashmore.speedups import CATALOGUE
from flashmore.terminal import write_json


@dataclass(frozen=True)
class ListSpeedups:
    """List the speed-ups: devices, exactness, costs, and links to their documentation.

    Speed-ups that do not work on this machine with the default options are marked; other models may differ.
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to use; `auto` uses a GPU if there is one."""
    json: bool = False
    """Print the list to stdout as JSON, and nothing else."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore speedups`."""
    command = parse(ListSpeedups, "speedups", argv)

    from flashmore.training.corpus import read_corpus
    from flashmore.training.decide import why_not
    from flashmore.training.fit import fit
    from flashmore.training.resolve import resolve_device, resolve_model

    config, device = TrainConfig(device=command.device), resolve_device(command.device)
    corpus = read_corpus(config)
    config = fit(config, corpus)[0]
    model_config = resolve_model(config, corpus)
    reasons = {name: why_not(name, config, model_config, device) for name in CATALOGUE}
    if command.json:
        write_json(
            [
                {"name": name, **asdict(entry), "how": entry.how(name)}
                | {"works_here": reasons[name] is None, "why_not": reasons[name]}
                for name, entry in CATALOGUE.items()
            ]
        )
        return 0
    console = stdout()
    indented = partial(
        wrap,
        width=console.width,
        initial_indent="  ",
        subsequent_indent="  ",
        break_long_words=False,  # of links
        break_on_hyphens=False,
    )
    for name, entry in CATALOGUE.items():
        works = entry.how(name) if reasons[name] is None else f"not usable here: {reasons[name]}"
        facts = f"{', '.join(entry.devices)}; {entry.exactness}; costs {entry.costs}"
        console.print(Text(f"{name}: {entry.title}", "bold"))
        for fact in (facts, works, entry.page):
            console.print(*indented(fact))
    return 0
