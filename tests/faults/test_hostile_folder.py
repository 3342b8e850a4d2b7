"""A folder with modules of other people's in it runs none of them when a command is started there."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from shlex import split
from typing import Any

import pytest

from forks import Forks

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


COMMAND = str(Path(sys.executable).with_name("flashmore"))


def run(*words: str, folder: Path, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([COMMAND, *words], cwd=folder, capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def trained(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    words = split("train --model bigram --max-steps 2 --device cpu --speedups none --out run")
    assert forks.run(("-m", "flashmore", *words), os.environ, folder).returncode == 0
    return folder


@pytest.mark.parametrize(
    "content",
    [
        b"text.usetex: True\n",
        pytest.param(b"\xff\xfe\n", marks=pytest.mark.faults),
        pytest.param(b"no.such.setting: 1\n", marks=pytest.mark.faults),
    ],
)
def test_pictures_are_drawn_without_settings_from_the_working_directory(
    trained: Path, content: bytes
) -> None:
    (trained / "matplotlibrc").write_bytes(content)
    done = run("compare", "run", "--picture", "names.png", folder=trained)
    assert done.returncode == 0, done.stderr
    assert "matplotlib" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="a working directory can be removed on Unix alone")
def test_a_working_directory_that_was_removed_is_told(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    script = (
        f"import os; os.chdir('gone'); os.rmdir('../gone'); os.execv({COMMAND!r}, ['flashmore', 'choose'])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "it was deleted" in done.stderr


LIMITED = """
import resource, sys
from flashmore.cli.main import main
largest = 7500  # bytes: more than everything but the events
resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(not find_spec("tensorboard"), reason="needs TensorBoard")
def test_events_that_cannot_be_written_stop_no_training(forks: Forks, tmp_path: Path) -> None:
    pytest.importorskip("resource")
    (tmp_path / "limited.py").write_text(LIMITED)
    (tmp_path / "names.txt").write_text("\n".join(first + second for first in "abcde" for second in "no"))
    words = split("train names.txt --model bigram --max-steps 90 --patience 0 --log-interval 1 --device cpu")
    words += ["--log-to", "tensorboard"]
    done = forks.run((tmp_path / "limited.py", *words, "--out", "run"), os.environ, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tensorboard no longer receives metrics" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.faults
def test_the_compilers_processes_import_nothing_from_the_working_directory(tmp_path: Path) -> None:
    for name in MODULES:
        (tmp_path / f"{name}.py").write_text(f"open('{name}.ran', 'w')\n")
    words = split(
        "train --speedups compile --max-steps 2 --batch-size 4 --n-embd 8 --n-layer 1 --n-head 1 --device cpu"
    )
    done = run(*words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("*.ran"))
