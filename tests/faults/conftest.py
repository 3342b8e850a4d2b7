import pytest

from forks import Forks
from jobs import Jobs


@pytest.fixture(scope="session")
def jobs(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    return Jobs(forks, tmp_path_factory.mktemp("cache"))
