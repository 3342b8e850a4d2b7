"""`flashmore page`: a run as a web page."""

from collections.abc import Sequence
from pathlib import Path

from tyro.conf import Positional

from flashmore.cli.parse import command, require_writable
from flashmore.errors import UsageError
from flashmore.files import disk_errors, replace_file
from flashmore.terminal import say

ENDINGS = (".html", ".htm")


@command("page")
def main(
    runs: Positional[tuple[Path, ...]], *, out: Path = Path("page.html"), without_data: bool = False
) -> int:
    """Turn a run into a self-contained web page that generates names and shows attention and training.

    It works from disk or any web server, and makes no requests. Several runs are shown side by side.

    Args:
        runs: Folders or packs of the runs.
        out: HTML file to write.
        without_data: Leave out the items, which the page needs to tell new names from known ones.
    """
    if not runs:
        raise UsageError("at least one run", "none", "folders made by `flashmore train --out FOLDER`")
    require_writable("--out", out, endings=ENDINGS)
    write_page(runs, out, with_data=not without_data)
    return 0


def write_page(runs: Sequence[Path], out: Path, *, with_data: bool = True) -> None:
    """Write the page of some runs to `out`."""
    from flashmore.runs import Run
    from flashmore.share.page import page

    text = page([Run.open(run) for run in runs], with_data=with_data).encode()
    with disk_errors(f"to make the folder {out.parent}", out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, text)
    say(f"wrote {out}: {len(text):,} bytes")
