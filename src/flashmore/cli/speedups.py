"""`flashmore speedups`: the catalogue of documented speed-ups, and which of them work here."""

from dataclasses import asdict
from functools import partial
from textwrap import wrap
from typing import Literal

from rich.text import Text

from flashmore.cli.parse import command
from flashmore.cli.show import stdout
from flashmore.config import TrainConfig
from flashmore.speedups import CATALOGUE
from flashmore.terminal import write_json


@command("speedups")
def main(*, device: Literal["auto", "cpu", "cuda", "mps"] = "auto", json: bool = False) -> int:
    """List the speed-ups: devices, exactness, costs, and links to their documentation.

    Speed-ups that do not work on this machine with the default options are marked; other models may differ.

    Args:
        device: Device to use; `auto` uses a GPU if there is one.
        json: Print the list to stdout as JSON, and nothing else.
    """
    from flashmore.training.corpus import read_corpus
    from flashmore.training.decide import why_not
    from flashmore.training.fit import fit
    from flashmore.training.resolve import resolve_device, resolve_model

    config, here = TrainConfig(device=device), resolve_device(device)
    corpus = read_corpus(config)
    config = fit(config, corpus)[0]
    model_config = resolve_model(config, corpus)
    reasons = {name: why_not(name, config, model_config, here) for name in CATALOGUE}
    if json:
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
