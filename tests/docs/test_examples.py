"""Each example runs as its own process, without a warning, and tells its story."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from flashmore.specs import backends
from forks import Forks

EXAMPLES = Path(__file__).parents[2] / "examples"


def check_brand_names(output: str) -> None:
    """Ten different names, none of which is on the list, the likeliest first."""
    lines = [line.split() for line in output.splitlines()]
    names = [words[0] for words in lines]
    likelihoods = [float(words[-1]) for words in lines]
    listed = re.search(r'BRANDS = """(.*?)"""', (EXAMPLES / "brand_names.py").read_text("utf-8"), re.DOTALL)
    assert listed is not None
    assert len(set(names)) == 10
    assert not set(names) & set(listed[1].split())
    assert likelihoods == sorted(likelihoods, reverse=True)


def check_compare_backends(output: str) -> None:
    """A small error or a reason for every backend in both precisions; none may be left out."""
    largest = {"torch.float32": 1e-5, "torch.bfloat16": 0.1}
    rows = re.findall(r"^(torch\.\w+) +(\w+) +(.+)$", output, re.MULTILINE)
    assert [(dtype, backend) for dtype, backend, _ in rows] == [
        (dtype, backend) for dtype in largest for backend in backends()
    ]
    for dtype, backend, result in rows:
        if result.startswith("it cannot run here: "):
            assert backends()[backend].fused
        else:
            assert 0 < float(result) < largest[dtype], (dtype, backend)


def check_python_api(output: str) -> None:
    """Losses that fall, names with the prefix and their novelty, scores, and a message in three parts."""
    losses = [float(loss) for loss in re.findall(r"validation ([\d.]+)$", output, re.MULTILINE)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 2.6
    assert len(re.findall(r"^ma\w* \((?:train|validation|test|new)\)$", output, re.MULTILINE)) == 5
    scores = dict(re.findall(r"^(emma|xqzw): (-[\d.]+) a character", output, re.MULTILINE))
    assert float(scores["emma"]) > float(scores["xqzw"])
    assert re.search(r"^wanted: .*\n found: .*'!'.*\n valid: a b c", output, re.MULTILINE)


def check_resume(output: str) -> None:
    """Interrupted in the middle, finished afterwards, and every weight tensor the same."""
    assert "interrupted: by Ctrl-C at step 30 of 40; saved" in output
    assert "done after step 40" in output
    equal, count = re.findall(r"^(\d+) of (\d+) weight tensors", output, re.MULTILINE)[0]
    assert int(equal) == int(count) > 0


def check_upgrade_model(output: str) -> None:
    """One place rewritten and tested, one refused, and nothing left to do the second time."""
    assert re.findall(r"^exit code (\d)$", output, re.MULTILINE) == ["1", "0", "0"]
    assert "1 can be rewritten (1 tested), 1 refused, 0 already fused, 1 file written" in output
    assert "0 can be rewritten, 1 refused, 1 already fused" in output
    assert output.rpartition("class Attention")[2].count("is_causal=True") == 1


CHECKS: dict[str, Callable[[str], None]] = {
    "brand_names": check_brand_names,
    "compare_backends": check_compare_backends,
    "python_api": check_python_api,
    "resume": check_resume,
    "upgrade_model": check_upgrade_model,
}


def run_example(forks: Forks, name: str, *arguments: str, folder: Path) -> str:
    """Run an example in an empty folder; a warning is an error."""
    done = forks.run((EXAMPLES / f"{name}.py", *arguments), os.environ, folder)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_every_example_is_checked() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(CHECKS)


@pytest.mark.parametrize("name", CHECKS)
def test_an_example_tells_its_story_and_leaves_nothing_behind(
    name: str, tmp_path: Path, forks: Forks
) -> None:
    CHECKS[name](run_example(forks, name, folder=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_where_it_is_told(tmp_path: Path, forks: Forks) -> None:
    run_example(forks, "python_api", "mine", folder=tmp_path)
    assert {"config.json", "metrics.jsonl", "result.json"} <= {
        path.name for path in (tmp_path / "mine").iterdir()
    }


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_uses_public_names_alone(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) < 60
    assert set(re.findall(r"(?:from|import) (flashmore\S*)", source)) <= {"flashmore", "flashmore.specs"}
