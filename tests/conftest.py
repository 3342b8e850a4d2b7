"""What tests need that this machine may not have: each is skipped with its name."""

import atexit
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Runs repeat bit for bit on one number of threads, so tests and the processes they start share one:
# one, because the models are tiny and on a busy machine a second thread only waits. Torch reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What one test measures or compiles, the others find; nothing comes from or gets into the user's own cache.
if "FLASHMORE_CACHE" not in os.environ:  # workers of pytest-xdist inherit it
    os.environ["FLASHMORE_CACHE"] = tempfile.mkdtemp(prefix="flashmore-tests-")
    atexit.register(shutil.rmtree, os.environ["FLASHMORE_CACHE"], ignore_errors=True)
# Without files of bytecode each process that a test starts, and each worker, would compile all modules again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest
from hypothesis import settings

from forks import Forks

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from flashmore.upgrade.verify.verifier import Verifier
    from jobs import Jobs

# The same examples every time, so that what fails here fails everywhere; `make test-long` draws new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("new", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# A job in the background of a shell ignores Ctrl-C, and so would every process that a test starts and stops.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch  # which the process that only hands out tests to workers does not need

    without_gpu = pytest.mark.skip(reason="needs an NVIDIA GPU, and torch sees none")
    folder = os.environ.get("FLASHMORE_COMPARISON_DATA")
    without_data = pytest.mark.skip(reason="FLASHMORE_COMPARISON_DATA names no folder with comparison data")
    for item in items:
        if "cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(without_gpu)
        if "comparison" in item.keywords and not (folder and Path(folder).is_dir()):
            item.add_marker(without_data)


def pytest_collection_finish() -> None:
    # What is imported by now stays: no collection of garbage need look at it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)


@pytest.fixture(scope="session", autouse=True)
def short_measurements() -> Iterator[None]:
    """`--attention auto` measures in shorter blocks: no test asks which backend is the fastest here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flashmore.backends.choose.BLOCK_SECONDS", 0.001)
        yield


@pytest.fixture(scope="session")
def comparison_data() -> Path:
    """The folder with the data that other people's figures were measured on."""
    return Path(os.environ["FLASHMORE_COMPARISON_DATA"])


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """One process that forks for all tests."""
    with Forks() as started:
        yield started


@pytest.fixture(scope="session")
def jobs(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> "Jobs":
    """What does the jobs of tests/faults, where its module lies."""
    from jobs import Jobs

    return Jobs(forks, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def verifier() -> "Iterator[Verifier]":
    """One process that judges tests of rewrites for all tests that do not look at the process itself."""
    from flashmore.upgrade.verify.verifier import Verifier

    with Verifier() as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Chromium or Chrome; without one the test is skipped."""
    from playwright.sync_api import sync_playwright

    from browsers import CHROMIUM, QUIET

    if CHROMIUM is None:
        pytest.skip("needs Chromium or Chrome, and none is installed")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield started
        started.close()
