"""`flashmore speedups`: the catalogue of documented speed-ups, and which of them work here."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from flashmore.cli.parse import parse
from flashmore.cli.show import stdout, table
from flashmore.speedups import CATALOGUE
from flashmore.terminal import write_json


@dataclass(frozen=True)
class ListSpeedups:
    """List every documented speed-up: devices, exactness, costs, and documentation.

    The last column applies to this machine and the default config; a run of another model may differ.
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device of the run; `auto` selects a GPU if there is one."""
    json: bool = False
    """Print a list of objects on stdout and nothing else."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore speedups`."""
    command = parse(ListSpeedups, "speedups", argv)
    reasons = _reasons(command.device)
    if command.json:
        write_json([_as_json(name, reasons[name]) for name in CATALOGUE])
        return 0
    rows = table("name", "what", "devices", "how", "exactness", "costs", "works here", "page")
    for name, entry in CATALOGUE.items():
        works = "yes" if reasons[name] is None else f"no: {reasons[name]}"
        devices = ", ".join(entry.devices)
        rows.add_row(
            name, entry.title, devices, entry.how(name), entry.exactness, entry.costs, works, entry.page
        )
    stdout().print(rows)
    return 0


def _reasons(device: Literal["auto", "cpu", "cuda", "mps"]) -> dict[str, str | None]:
    """Why each one cannot work here; None if it can."""
    from flashmore.config import TrainConfig
    from flashmore.training.corpus import read_corpus
    from flashmore.training.decide import why_not
    from flashmore.training.resolve import resolve_device, resolve_model

    config = TrainConfig(device=device)
    model_config = resolve_model(config, read_corpus(config))
    return {name: why_not(name, config, model_config, resolve_device(device)) for name in CATALOGUE}


def _as_json(name: str, reason: str | None) -> dict[str, Any]:
    return {
        "name": name,
        **asdict(CATALOGUE[name]),
        "how": CATALOGUE[name].how(name),
        "works_here": reason is None,
        "why_not": reason,
    }
