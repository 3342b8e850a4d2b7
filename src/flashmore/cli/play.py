"""`flashmore play`: the page of a run, opened in the browser."""

import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from flashmore.cli.page import write_page
from flashmore.cli.parse import parse, require_writable
from flashmore.terminal import say


@dataclass(frozen=True)
class Play:
    """Write the page of a run next to its files and open it in the browser."""

    run: Positional[Path]
    """Folder or pack of the run."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore play`."""
    command = parse(Play, "play", argv)
    open_page(command.run)
    return 0


def open_page(run: Path) -> None:
    """Write the page of a run, in its folder or next to its pack, and open it."""
    out = run / "page.html" if run.is_dir() else run.with_name(f"{run.name}.html")
    require_writable("the page", out)
    write_page([run], out)
    if not webbrowser.open(out.absolute().as_uri()):
        say(f"no browser could be opened; open {out} yourself")
