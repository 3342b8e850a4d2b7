"""A folder with modules of other people's in it runs none of them when a command is started there."""

import subprocess
import sys
from pathlib import Path
from shlex import split

import pytest

MODULES = (
    "ctypes",
    "torch",
    "numpy",
    "typing",
    "logging",
    "pickle",
    "traceback",
    "sitecustomize",
    "flashmore",
)


@pytest.mark.faults
def test_the_compilers_processes_import_nothing_from_the_working_directory(tmp_path: Path) -> None:
    for name in MODULES:
        (tmp_path / f"{name}.py").write_text(f"open('{name}.ran', 'w')\n")
    words = split(
        "train --speedups compile --steps 2 --batch 4 --channels 8 --layers 1 --heads 1 --device cpu"
    )
    command = Path(sys.executable).with_name("flashmore")
    done = subprocess.run([command, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("*.ran"))
