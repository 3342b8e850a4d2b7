"""One process that judges tests for all tests that do not look at the process itself."""

from collections.abc import Iterator

import pytest

from flashmore.upgrade.verify.verifier import Verifier


@pytest.fixture(scope="session")
def verifier() -> Iterator[Verifier]:
    with Verifier() as started:
        yield started
