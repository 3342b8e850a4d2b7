"""matplotlib, without settings from the working directory."""

import os
from functools import cache
from pathlib import Path
from types import ModuleType


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
