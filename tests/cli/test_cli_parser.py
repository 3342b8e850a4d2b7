"""Words that are no command at all: the parser's own message, in a box, and exit code 2."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Call = Callable[..., CompletedProcess[str]]

# What the parser itself refuses, in a box of its own: what was found, and what would be valid.
UNPARSED = [
    ("train {names} --model nonsense", "'nonsense'", "transformer"),
    ("train {names} --model=", "''", "transformer"),
    ("train {names} --attention fast", "'fast'", "flash"),
    ("train {names} --preset karpathy", "'karpathy'", "makemore"),
    ("train {names} --device tpu", "'tpu'", "cuda"),
    ("train {names} --dtype float8", "'float8'", "bfloat16"),
    ("train {names} --max-steps 1e3", "'1e3'", "--max-steps INT"),
    ("train {names} --batch-size many", "'many'", "--batch-size INT"),
    ("train {names} --learning-rate fast", "'fast'", "--learning-rate FLOAT"),
    ("train {names} --max-stepz 4", "--max-stepz", "--max-steps"),
    ("train {names} {names}", "names.txt", "--help"),
    ("train --resume", "--resume", "--help"),
    ("generate", "PATH", "--help"),
    ("generate {run} --top-k few", "'few'", "--top-k"),
    ("score", "PATH", "--help"),
    ("compare {run} --models gpt", "'gpt'", "transformer"),
    ("demo 3", "3", "--help"),
]


@pytest.mark.parametrize(("given", "found", "valid"), UNPARSED)
def test_the_parser_says_what_it_found_and_what_would_fit(
    given: str,
    found: str,
    valid: str,
    names_file: Path,
    trained: Path,
    call: Call,
    plain: Callable[[str], bool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*(word.format(names=names_file, run=trained) for word in given.split()))
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert found in done.stderr
    assert valid in done.stderr
    assert plain(done.stderr)
    assert not list(tmp_path.iterdir())
