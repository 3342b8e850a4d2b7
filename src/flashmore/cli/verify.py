"""`flashmore verify`: whether every file of a run is intact."""

from dataclasses import asdict
from pathlib import Path

from tyro.conf import Positional

from flashmore.cli.parse import command
from flashmore.cli.show import stdout
from flashmore.terminal import write_json


@command("verify")
def main(run: Positional[Path], *, json: bool = False) -> int:
    """Check every file of a run: checksums, shapes and finite values. Exit code 1 if one is damaged.

    Args:
        run: Folder of the run, or a pack.
        json: Print the result to stdout as JSON, and nothing else.
    """
    from flashmore.training.verify import verify

    found = verify(run)
    if json:
        write_json([asdict(each) for each in found])
    else:
        stdout().print(*(f"{each.file}: {each.problem or 'ok'}" for each in found))
    return int(any(each.problem for each in found))
