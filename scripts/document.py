"""Generate the parts of the documentation that come from the code, or check that they are up to date.

    python scripts/document.py [--check]

These are the record's schema in docs/measuring.md (as tables) and record.schema.json, the catalogue of
speed-ups in docs/speedups.md, and of `flashmore upgrade` the case files in docs/upgrade-rules.md, the list of
rules in docs/upgrade.md and a page for each rule in docs/rules, as `flashmore rule` prints it. With --check
nothing is written, and the exit code is 1 if a file is out of date.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import catalogue_table
import record_tables
import rules_page
from flashmore.upgrade.rules import RULES
from flashmore.upgrade.rules.explanation import page

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = "src/flashmore/measuring/record.schema.json"
PARTS: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("docs/measuring.md", "fields", record_tables.tables),
    ("docs/speedups.md", "catalogue", catalogue_table.table),
    ("docs/upgrade-rules.md", "rules", rules_page.chapters),
    ("docs/upgrade.md", "codes", rules_page.table),
)
"""A page, the name of its generated part, and the function that generates it."""


def with_part(page: str, name: str, content: str) -> str:
    """The page with this content between the two markers of the part."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"wanted: a page with the lines {begin.strip()} and {end.strip()}; found: none")
    return f"{before}{begin}\n{content}\n{end}{after}"


def _text(name: str) -> str:
    """A page; nothing where it is missing."""
    path = ROOT / name
    return path.read_text(encoding="utf-8") if path.exists() else ""


def main() -> int:
    """Write or check; 1 if a file is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a file is out of date"
    )
    check = parser.parse_args().check
    made = {name: with_part(_text(name), part, make()) for name, part, make in PARTS}
    made[SCHEMA] = record_tables.document()
    made |= {f"docs/rules/{rule.code}.md": page(rule) for rule in RULES}
    stale = [name for name, text in made.items() if _text(name) != text]
    for name in stale:
        if not check:
            (ROOT / name).write_text(made[name], encoding="utf-8")
        print(f"{name} {'is out of date' if check else 'updated'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
