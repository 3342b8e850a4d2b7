"""matplotlib, without settings from the working directory; figures saved as files."""

import io
import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from flashmore.files import disk_errors, replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@cache
def matplotlib() -> ModuleType:
    """Import matplotlib.

    Importing it reads a `matplotlibrc` in the working directory, if there is one, whose settings may start
    LaTeX. So it is imported in a folder without one. The user's own settings apply as usual.
    """
    before = Path.cwd()
    os.chdir(Path(__file__).parent)
    try:
        import matplotlib as module
    finally:
        os.chdir(before)
    return module


def save_picture(draw: "Callable[[], Figure]", path: Path) -> int:
    """Draw with matplotlib's default settings and save as a file: .png, .svg or .pdf.

    Returns:
        How many different characters the font lacks; each is drawn as a box.

    Raises:
        StorageError: writing failed; `path` is unchanged.
    """
    mpl = matplotlib()
    picture = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught, mpl.rc_context(dict(mpl.rcParamsDefault)):
        warnings.filterwarnings("always", "Glyph ")
        draw().savefig(picture, format=path.suffix[1:].lower(), facecolor="white")
    with disk_errors(f"to make the folder {path.parent}", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, picture.getvalue())
    return len({text for warning in caught if (text := str(warning.message)).startswith("Glyph ")})
