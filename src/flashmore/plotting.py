"""matplotlib, without settings from the working directory."""

import os
from functools import cache
from pathlib import Path
from types import ModuleType


@cache
def matplotlib() -> ModuleType:
    """Import matplotlib.

    Importing it reads a file `matplotlibrc` in the working directory, if there is one, and its settings may
    start LaTeX. So it is imported in a folder that has none. The user's own settings count as usual.
    """
    before = Path.cwd()
    os.chdir(Path(__file__).parent)
    try:
        import matplotlib as module
    finally:
        os.chdir(before)
    return module
