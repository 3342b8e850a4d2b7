"""One process that forks for all tests."""

from collections.abc import Iterator

import pytest

from forks import Forks


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    with Forks() as started:
        yield started
