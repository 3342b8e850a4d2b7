"""Records and remembered choices that a stranger prepared are refused or passed over."""

import json
import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from shlex import split
from typing import Any

import pytest

from damage import NESTED, VALUES, leaves, put, text_of
from flashmore.specs import backends
from jobs import Job, Jobs, Outcome

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork and the kinds of files that Unix has")
RECORDS = Path(__file__).parents[1] / "golden" / "records"
KINDS_OF_RECORDS = ("attention", "choose", "step")
CHOOSE = split("choose --batch-size 1 --n-head 1 --length 4 --head-dim 4 --device cpu --json")
Prepare = Callable[[Path], object]


def _hole(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


def _holding(text: str | bytes) -> Prepare:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda path: path.write_bytes(data)


KINDS: dict[str, Prepare] = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to /proc/kmsg": lambda path: path.symlink_to("/proc/kmsg"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a hole": _hole,
    "nothing": _holding(""),
    "no UTF-8": _holding(b'{"\xff": 1}'),
    "a list": _holding("[1]"),
    "open brackets": _holding("[" * 10**6),
    "digits": _holding("1" * 10**6),
    **{f"nested {name}": _holding(text) for name, text in NESTED.items()},
}


def prepared(document: dict[str, Any]) -> Iterator[tuple[str, Prepare]]:
    """Files of other kinds, then the document with every value replaced; of a list only the first item."""
    yield from KINDS.items()
    for place in leaves(document):
        for value in VALUES if 1 not in place else ():
            yield f"{list(place)} = {value!r:.40}", partial(_write_changed, document, place, value)


def _write_changed(document: dict[str, Any], place: tuple[Any, ...], value: object, path: Path) -> None:
    _holding(text_of(put(deepcopy(document), place, value)))(path)


def check_all(
    cases: list[tuple[str, Prepare]],
    folder: Path,
    name: str,
    run: Callable[[str], Outcome],
    written: set[str],
) -> None:
    """Prepare the file `name` anew, run, and look at what else is in the folder afterwards."""
    wrong = []
    for number, (case, prepare) in enumerate(cases):
        home = folder / str(number)
        (home / name).parent.mkdir(parents=True)
        prepare(home / name)
        try:
            outcome = run(str(home))
            outcome.require_harmless(1, case)
            left = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
            assert left - {name} <= written, f"{case}: {left}"
            require_known_backend(outcome, case)
        except AssertionError as error:
            wrong.append(str(error)[:2000])
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong[:20])


def require_known_backend(outcome: Outcome, case: str) -> None:
    """What was chosen, if anything, is a backend."""
    if outcome.codes == (0,) and outcome.text.startswith("{"):
        assert json.loads(outcome.text)["chosen"] in backends(), case


def check_records(jobs: Jobs, folder: Path, kind: str, every: int) -> None:
    record = json.loads((RECORDS / f"{kind}-cpu.json").read_bytes())
    cases = list(prepared(record))[::every]
    words = ("report", "record.json", "--out", "page.html")
    check_all(cases, folder, "record.json", lambda home: jobs.run(Job((words,), home)), {"page.html"})


def check_choices(jobs: Jobs, folder: Path, every: int) -> None:
    def run(home: str) -> Outcome:
        return jobs.run(Job((tuple(CHOOSE),), home, cache="cache"))

    assert run(str(folder)).codes == (0,)
    (remembered,) = (folder / "cache").iterdir()
    intact = json.loads(remembered.read_bytes())
    cases = [case for case in prepared(intact) if not case[0].startswith("['key', ")][::every]
    check_all(cases, folder, f"cache/{remembered.name}", run, set())


@pytest.mark.parametrize("kind", KINDS_OF_RECORDS)
def test_records(kind: str, jobs: Jobs, tmp_path: Path) -> None:
    check_records(jobs, tmp_path, kind, every=400)


def test_remembered_choices(jobs: Jobs, tmp_path: Path) -> None:
    check_choices(jobs, tmp_path, every=320)


@pytest.mark.faults
@pytest.mark.parametrize("kind", KINDS_OF_RECORDS)
def test_every_record(kind: str, jobs: Jobs, tmp_path: Path) -> None:
    # Those with pictures take a second each.
    check_records(jobs, tmp_path, kind, every=1 if kind == "choose" else 6)


@pytest.mark.faults
def test_every_remembered_choice(jobs: Jobs, tmp_path: Path) -> None:
    check_choices(jobs, tmp_path, every=1)
