import subprocess
import sys
from typing import Any

import pytest

from flashmore.errors import ConfigError
from flashmore.generation.options import GenerateOptions


@pytest.mark.parametrize(
    ("option", "bad"),
    [
        ("count", 0),
        ("count", -3),
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", float("nan")),
        ("seed", -1),
        ("seed", 2**63),
        ("max_draws", 0),
        ("min_length", 0),
        ("max_length", 0),
        ("max_distance", 0),
    ],
)
def test_a_number_outside_its_range_is_refused(option: str, bad: float) -> None:
    values: dict[str, Any] = {option: bad}
    with pytest.raises(ConfigError) as caught:
        GenerateOptions(**values)
    assert "--" + option.replace("_", "-") in caught.value.wanted
    assert str(bad) in caught.value.found


def test_a_temperature_of_zero_is_told_of_greedy() -> None:
    with pytest.raises(ConfigError, match="--top-k 1"):
        GenerateOptions(temperature=0)


def test_the_ends_of_each_range_are_taken() -> None:
    GenerateOptions(count=1, temperature=5e-324, top_k=1, top_p=1.0, seed=0)
    GenerateOptions(temperature=1e308, top_k=10**9, top_p=5e-324, seed=2**63 - 1)


def test_the_options_import_no_torch() -> None:
    code = "import sys, flashmore.generation.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
