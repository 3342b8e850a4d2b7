"""`flashmore pack`: a run as one file to hand on."""

from pathlib import Path

from tyro.conf import Positional

from flashmore.cli.parse import command, require_writable
from flashmore.errors import ConfigError
from flashmore.terminal import say


@command("pack")
def main(run: Positional[Path], *, out: Path, with_items: bool = False) -> int:
    """Pack a finished run into one file, which commands that only read a run accept in place of its folder.

    It contains the best weights, vocabulary, options and result, but no paths and, by default, no items.

    Args:
        run: Folder of the run.
        out: File to write; it must not exist.
        with_items: Include the items and their weights, which are needed to tell new names from known ones.
    """
    require_writable("--out", out)
    if out.exists():  # it may be somebody's list
        raise ConfigError("a new file for --out", f"{out} exists", "another --out")

    from flashmore.runs import Run
    from flashmore.runs.pack import write
    from flashmore.training.result import require_result

    packed = Run.open(run)
    if out.resolve().is_relative_to(run.resolve()):
        raise ConfigError("a file for --out outside the run's folder", str(out), "another --out")
    result = require_result(packed)
    out.parent.mkdir(parents=True, exist_ok=True)
    write(packed, result.to_json(), out, with_items=with_items)
    say(f"packed {run} into {out}: {out.stat().st_size:,} bytes")
    return 0
