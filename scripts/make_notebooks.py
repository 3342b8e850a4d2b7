"""Generate the notebooks from their Markdown sources, or check that they are up to date.

    python scripts/make_notebooks.py [--check]

Every Python block becomes a code cell, every bash block a %%bash cell, and the text between them Markdown
cells. Notebooks have no outputs: where a page quotes the output of a block, the quotation is left out,
because running the cell prints it. With --check nothing is written, and the exit code is 1 if a notebook is
out of date.
"""

import argparse
import re
import sys
from pathlib import Path

import jupytext
import nbformat

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
SOURCES = {
    "names": FOLDER / "names.md",
    "attention": ROOT / "docs" / "attention.md",
    "measuring": FOLDER / "measuring.md",
    "upgrade": FOLDER / "upgrade.md",
}
"""The source of each notebook, in reading order."""
QUOTED_OUTPUT = re.compile(r"(^```python\n.*?^```\n)\n?```text\n.*?^```\n", re.DOTALL | re.MULTILINE)
INSTALL = """\
```python
import importlib.util

if importlib.util.find_spec("flashmore") is None:
    %pip install --quiet flashmore
```
"""
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def place(name: str) -> str:
    """The sentence that says which notebooks come before and after this one."""
    order = list(SOURCES)
    index = order.index(name)
    before, after = (
        f"[{other}]({other}.ipynb)" for other in (order[index - 1], order[(index + 1) % len(order)])
    )
    if index == 0:
        return f"This is the first of {len(order)} notebooks; the next one is {after}."
    if index == len(order) - 1:
        return f"This is the last of {len(order)} notebooks; the previous one is {before}."
    return f"This is notebook {index + 1} of {len(order)}, between {before} and {after}."


def notebook(name: str) -> str:
    """The notebook as JSON; it depends only on the source."""
    page = QUOTED_OUTPUT.sub(r"\1", SOURCES[name].read_text(encoding="utf-8"))
    introduction, heading, rest = page.partition("\n## ")
    made = jupytext.reads(f"{introduction}\n{place(name)}\n\n{INSTALL}{heading}{rest}", fmt="md")
    made.metadata = nbformat.from_dict(METADATA)
    made.nbformat, made.nbformat_minor = 4, 5  # the first version with cell ids
    for number, cell in enumerate(made.cells):
        cell.id = f"{name}-{number}"  # nbformat's own ids are random
        cell.metadata = nbformat.from_dict({})
    nbformat.validate(made)
    return str(nbformat.writes(made)) + "\n"


def main() -> int:
    """Write or check; 1 if a notebook is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a notebook is out of date"
    )
    check = parser.parse_args().check
    stale = False
    for name in SOURCES:
        path, made = FOLDER / f"{name}.ipynb", notebook(name)
        if not path.exists() or path.read_text(encoding="utf-8") != made:
            stale = True
            if not check:
                path.write_text(made, encoding="utf-8")
            print(f"{path.relative_to(ROOT)} {'is out of date' if check else 'updated'}")
    return int(check and stale)


if __name__ == "__main__":
    sys.exit(main())
