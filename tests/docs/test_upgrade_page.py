"""docs/upgrade.md says what the code does: its numbers, its options, its cases."""

import re
from pathlib import Path

from flashmore.benchmark.gain.child import DROPPED_STEPS
from flashmore.benchmark.gain.measure import FEWEST_STEPS
from flashmore.cli.upgrade_options import Upgrade
from flashmore.upgrade.budget import FILE_STEPS, FUNCTION_STEPS
from flashmore.upgrade.notebooks.notebook import LARGEST_NOTEBOOK, MOST_PARTS
from flashmore.upgrade.project.files import LARGEST
from flashmore.upgrade.project.patterns import MOST_LINES
from flashmore.upgrade.project.walk import MOST_ENTRIES
from flashmore.upgrade.trace.capture import MOST_SEEN
from flashmore.upgrade.verify.dropout import DRAWS
from flashmore.upgrade.verify.family import FILLS, MASKS, SHAPES
from flashmore.upgrade.verify.verifier import BYTES, FILE_SECONDS, SECONDS

PAGE = (Path(__file__).parents[2] / "docs" / "upgrade.md").read_text(encoding="utf-8")
WORDS = {3: "three", 6: "six"}


def test_the_numbers_on_the_page_are_those_of_the_code() -> None:
    assert f"ended after {SECONDS:.0f} s of\nwall-clock time" in PAGE
    assert f"The tests of one file may take {FILE_SECONDS:.0f} s of processor time together" in PAGE
    assert f"a function may take {FUNCTION_STEPS:,} of them, a file {FILE_STEPS:,}" in PAGE
    assert f"more than {LARGEST / 2**20:g} MiB" in PAGE
    assert f"may have {LARGEST_NOTEBOOK / 1e6:.0f} MB with its outputs and {MOST_PARTS:,} lists" in PAGE
    assert f"after the first {MOST_ENTRIES:,} files and folders" in PAGE
    assert f"more than {MOST_LINES:,} lines" in PAGE
    assert f"memory ({BYTES // 2**30} GiB)" in PAGE
    assert f"variance over {DRAWS} draws" in PAGE
    assert f"up to {WORDS[MOST_SEEN]} different" in PAGE
    assert f"below {WORDS[FEWEST_STEPS]} pairs" in PAGE
    # The time before the first step's end is not taken; a version's first samples are dropped.
    assert f"`--steps 60` gives {(60 - 1) // 2 - DROPPED_STEPS} pairs" in PAGE


def test_every_option_on_the_page_is_there() -> None:
    options = {f"--{name.replace('_', '-')}" for name in Upgrade.__dataclass_fields__}
    others = {"--steps", "--no-deps", "--to", "--inplace"}
    told = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) - others
    assert told <= options
    assert options - told <= {"--paths"}


def test_every_case_of_the_family_is_on_the_page() -> None:
    table = PAGE.split("**On a family of cases.**")[1].split("**Dropout**")[0]
    lengths = {"square": "L = S", "L = 1": "one query"}
    for shape in SHAPES:
        for part in shape.split(", "):
            assert lengths.get(part, part).replace("L ≠ S", "L < S") in table, part
    for mask in MASKS:
        assert mask.replace(" mask", "").split()[0] in table, mask
    words = {"finfo.min": "the lowest number of the mask's dtype"}
    for fill in FILLS:
        assert words.get(fill, fill.replace("-", "−")) in table, fill
