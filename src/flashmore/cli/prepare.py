"""`flashmore prepare`: a long text or list as ids on disk, for `train`."""

from pathlib import Path

from tyro.conf import Positional

from flashmore.cli.parse import command, require_writable
from flashmore.cli.waiting import Waiting
from flashmore.data.prepared import Mode, beside, prepare
from flashmore.errors import Interrupted
from flashmore.terminal import say


@command("prepare")
def main(file: Positional[Path], *, out: Path, mode: Mode = "items", encoding: str = "utf-8") -> int:
    """Convert a file for training: write its characters as 16-bit ids, with a JSON description next to them.

    It is read once, in pieces, so it may be larger than memory. The same command continues an interrupted
    preparation. Then: flashmore train OUT, with the same --mode.

    Args:
        file: A long text, or a list with one item per line.
        out: File to write, with a name that ends in .bin; OUT.json describes it.
        mode: `items`: each line is one item. `text`: one long text.
        encoding: Encoding of the file, such as utf-8 or latin-1.
    """
    require_writable("--out", out, endings=(".bin",))
    with Waiting(f"preparing {file}", "bytes") as waiting:
        try:
            prepared = prepare(file, out, encoding, mode, waiting.reach)
        except KeyboardInterrupt:
            at = f"after {waiting.done:,} of {waiting.total:,} bytes" if waiting.total else "at the beginning"
            wanted, valid = f"to prepare {file}", "Run the same command again to continue."
            raise Interrupted(wanted, at, valid) from None
    described = f"{prepared.count:,} characters, {len(prepared.characters):,} different"
    say(f"prepared {out} and {beside(out).name}: {described}")
    return 0
