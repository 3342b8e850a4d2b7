"""`flashmore verify`: whether every file of a run is intact."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tyro.conf import Positional

from flashmore.cli.parse import parse
from flashmore.cli.show import stdout
from flashmore.terminal import write_json


@dataclass(frozen=True)
class Verify:
    """Check every file of a run: checksums, shapes and finite values. Exit code 1 if one is damaged."""

    run: Positional[Path]
    """Folder of the run, or a pack."""
    json: bool = False
    """Print the result to stdout as JSON, and nothing else."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore verify`."""
    command = parse(Verify, "verify", argv)

    from flashmore.training.verify import verify

    found = verify(command.run)
    if command.json:
        write_json([asdict(each) for each in found])
    else:
        stdout().print(*(f"{each.file}: {each.problem or 'ok'}" for each in found))
    return int(any(each.problem for each in found))
