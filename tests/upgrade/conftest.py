"""One process that judges proofs for all tests that do not look at the process itself."""

from collections.abc import Iterator

import pytest

from flashmore.upgrade.prove.prover import Prover


@pytest.fixture(scope="session")
def prover() -> Iterator[Prover]:
    with Prover() as started:
        yield started
