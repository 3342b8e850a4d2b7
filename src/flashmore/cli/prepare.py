"""`flashmore prepare`: a long text or list as ids on disk, for `train`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from flashmore.cli.parse import parse, require_writable
from flashmore.cli.waiting import Waiting
from flashmore.data.prepared import Mode, beside, prepare
from flashmore.errors import Interrupted
from flashmore.terminal import say


@dataclass(frozen=True)
class Prepare:
    """Prepare a file for training: its characters as 16-bit ids, and a description in JSON beside them.

    It is read once, in pieces, so it may be larger than memory. The same command continues an interrupted
    preparation. Then: flashmore train OUT, with the same --mode.
    """

    file: Positional[Path]
    """A long text, or a list with one item per line."""
    out: Path
    """File to write, with a name that ends in .bin; OUT.json describes it."""
    mode: Mode = "items"
    """`items`: each line is one item. `text`: one long text."""
    encoding: str = "utf-8"
    """Encoding of the file, such as utf-8 or latin-1."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore prepare`."""
    command = parse(Prepare, "prepare", argv)
    require_writable("--out", command.out, endings=(".bin",))
    with Waiting(f"preparing {command.file}", "bytes") as waiting:
        try:
            prepared = prepare(command.file, command.out, command.encoding, command.mode, waiting.reach)
        except KeyboardInterrupt:
            at = f"after {waiting.done:,} of {waiting.total:,} bytes" if waiting.total else "at the beginning"
            wanted, valid = f"to prepare {command.file}", "Run the same command again to continue."
            raise Interrupted(wanted, at, valid) from None
    described = f"{prepared.count:,} characters, {len(prepared.characters):,} different"
    say(f"prepared {command.out} and {beside(command.out).name}: {described}")
    return 0
