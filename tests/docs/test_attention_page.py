"""docs/attention.md is a session that runs: every block in order, every quoted output as it is printed."""

import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "attention.md"
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n?```text\n(?P<output>.*?)^```\n)?", re.DOTALL | re.MULTILINE
)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


@dataclass(frozen=True)
class Block:
    """A block of code, with the output that stands directly after it."""

    line: int
    code: str
    output: str


def read_blocks(page: str) -> list[Block]:
    return [
        Block(page.count("\n", 0, found.start("code")), found["code"], found["output"] or "")
        for found in BLOCK.finditer(page)
    ]


def run_page(page: str, name: str) -> None:
    """Run the blocks in one namespace; a failure's traceback shows the line of the page."""
    namespace: dict[str, Any] = {}
    for block in read_blocks(page):
        printed = io.StringIO()
        code = compile("\n" * block.line + block.code, name, "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        assert printed.getvalue() == block.output, f"{name}, line {block.line + 1}"


def test_every_block_runs_and_prints_what_the_page_says() -> None:
    with torch.random.fork_rng(devices=[]):
        run_page(PAGE.read_text(encoding="utf-8"), str(PAGE))


def test_no_block_of_the_page_is_overlooked() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert len(read_blocks(page)) == page.count("```python")


@pytest.mark.parametrize(
    "page",
    [
        "```python\nprint(1)\n```\n```text\n2\n```\n",
        "```python\nprint(1)\n```\n",
        "```python\npass\n```\n\n```text\n2\n```\n",
        "```python\nx = 1\n```\n```python\nassert x == 2\n```\n",
    ],
)
def test_a_page_that_says_something_else_is_caught(page: str) -> None:
    with pytest.raises(AssertionError):
        run_page(page, "page.md")


def test_every_file_that_the_page_links_to_is_there() -> None:
    missing = [
        link for link in LINK.findall(PAGE.read_text(encoding="utf-8")) if not (PAGE.parent / link).exists()
    ]
    assert missing == []
