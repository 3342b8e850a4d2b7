"""`flashmore play`: the page of a run, opened in the browser."""

import tempfile
import webbrowser
from pathlib import Path

from tyro.conf import Positional

from flashmore.cli.page import write_page
from flashmore.cli.parse import command, require_writable
from flashmore.errors import StorageError
from flashmore.terminal import say


@command("play")
def main(run: Positional[Path]) -> int:
    """Write the page of a run next to its files and open it in the browser.

    Args:
        run: Folder or pack of the run.
    """
    open_page(run)
    return 0


def open_page(run: Path) -> None:
    """Write the page of a run, in its folder or next to its pack, and open it."""
    out = run / "page.html" if run.is_dir() else run.with_name(f"{run.name}.html")
    try:
        require_writable("the page", out)
    except StorageError:
        out = Path(tempfile.mkdtemp(prefix="flashmore-"), out.name)
        say(f"the page is written to {out}, because the folder of the run is read-only")
    write_page([run], out)
    if not webbrowser.open(out.absolute().as_uri()):
        say(f"no browser could be opened; open {out} yourself")
