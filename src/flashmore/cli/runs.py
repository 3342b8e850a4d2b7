"""`flashmore runs`: a table of the runs in a folder."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from flashmore.cli.parse import command
from flashmore.cli.show import UNFOLDED, stdout, table
from flashmore.terminal import write_json

if TYPE_CHECKING:
    from flashmore.training.folders import Listed

NUMBERS = ("steps", "val", "test", "MB")
WIDE = ("data", "MB")
"""Columns that are left out if a line would be too long."""
DETAILS = {"damaged": "damaged, ", "training": "being trained by "}


@command("runs")
def main(folder: Positional[Path] = Path("runs"), *, json: bool = False) -> int:
    """List the runs in a folder: model, data, steps, losses, size, and whether each is finished.

    Args:
        folder: Folder that contains the runs.
        json: Print the result to stdout as JSON, and nothing else.
    """
    from flashmore.training.folders import runs_in

    found = runs_in(folder)
    if json:
        write_json([asdict(each) for each in found])
    else:
        _show(folder, found)
    return 0


def _show(folder: Path, found: "Sequence[Listed]") -> None:
    rows = table("run", "model", "data", "steps", "val", "test", "MB", "state", numbers=NUMBERS)
    for column in rows.columns[1:]:
        column.no_wrap = True
    for each in found:
        steps = "–" if each.step is None else f"{each.step:,}/{each.max_steps:,}"
        losses = ["–" if loss is None else f"{loss:.4f}" for loss in (each.val_loss, each.test_loss)]
        size = f"{each.bytes / 1e6:,.1f}"
        name = Path(each.run).name
        rows.add_row(name, each.model or "–", each.data or "–", steps, *losses, size, each.state)
    details = (f"{each.run}: {DETAILS[each.state]}{each.detail}" for each in found if each.detail)
    console = stdout()
    unfolded = console.options.update(width=UNFOLDED)
    if console.measure(rows, options=unfolded).maximum > console.width:
        rows.columns = [column for column in rows.columns if column.header not in WIDE]
    console.print(*([rows] if found else [f"no runs in {folder}"]), *details)
