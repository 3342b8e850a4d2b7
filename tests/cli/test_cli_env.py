"""`flashmore env` describes the installation as records do, with its packages, devices and caches."""

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

from flashmore.measuring.environment import environment
from flashmore.training.resolve import resolve_device

Call = Callable[..., CompletedProcess[str]]


def test_a_command_needs_no_cache_that_it_can_write(
    process: Call, quick: tuple[object, ...], tmp_path: Path
) -> None:
    """PyTorch creates the folder of its compiler when that is imported."""
    (tmp_path / "file").touch()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    places = {"FLASHMORE_CACHE": str(tmp_path / "file" / "cache"), "TMPDIR": str(temporary)}
    words = ("--model", "transformer", "--attention", "sdpa", "--speedups", "none", "--out", tmp_path / "run")
    done = process(*quick, *words, **places)
    assert done.returncode == 0, done.stderr
    assert not [*temporary.glob("flashmore-*")]


@pytest.fixture
def without_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding the commit reads all sources, which takes most of the time."""
    monkeypatch.setattr("flashmore.measuring.environment.commit", lambda: "0123456789ab+")


@pytest.mark.usefixtures("without_commit")
def test_json_holds_the_versions_and_the_environment_of_a_record(document: Callable[..., Any]) -> None:
    found = document("env")
    assert found["flashmore"] == version("flashmore")
    assert found["environment"] == environment(resolve_device("auto"))
    packages = found["packages"]
    assert packages["numpy"] == version("numpy")
    assert packages["torch"] == version("torch")
    assert packages["tensorboard"] == version("tensorboard"), "an optional package that is installed"
    assert "pytest" not in packages, "flashmore does not use it"


@pytest.mark.usefixtures("without_commit")
def test_an_optional_package_that_is_missing_is_left_out(
    document: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashmore.cli.env.EXTRAS", ())
    monkeypatch.setattr("flashmore.training.trackers.TRACKERS", {"no-such-tracker": None})
    found = document("env")["packages"]
    assert "numpy" in found
    assert not {"pyarrow", "no-such-tracker"} & set(found)


@pytest.mark.usefixtures("without_commit")
def test_every_device_is_listed_by_name(document: Callable[..., Any]) -> None:
    devices = document("env")["devices"]
    here = environment(torch.device("cpu"))
    assert devices["cpu"] == here["cpu_name"]
    assert len([device for device in devices if device.startswith("cuda:")]) == torch.cuda.device_count()


@pytest.mark.usefixtures("without_commit")
def test_the_caches_are_those_in_use(
    document: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLASHMORE_CACHE", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert document("env")["caches"] == {"flashmore": str(tmp_path), "torchinductor": None}
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "compiled")
    assert document("env")["caches"]["torchinductor"] == "compiled"


def test_a_process_reports_the_folder_that_it_gives_to_the_compiler(
    process: Call, environment: dict[str, str]
) -> None:
    done = process("env", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    default = str(Path(environment["FLASHMORE_CACHE"]) / "torchinductor")
    expected = environment.get("TORCHINDUCTOR_CACHE_DIR", default)
    assert json.loads(done.stdout)["caches"]["torchinductor"] == expected


@pytest.mark.usefixtures("without_commit")
def test_the_table_says_the_same_and_what_is_absent(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashmore.cli.env.cache_folder", lambda: None)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    done = call("env")
    assert (done.returncode, done.stderr) == (0, "")
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines()[1:-1]]
    rows = {name: value for name, value in cells if name}
    assert rows["flashmore"] == f"{version('flashmore')} (0123456789ab+)"
    assert rows["torch"] == version("torch")
    assert rows["cache"] == "none: there is no home directory"
    assert rows["torch.compile"] == "PyTorch's default folder"
