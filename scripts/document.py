"""Write what the documentation tells from the code's own data, or check that it is there.

    python scripts/document.py [--check]

docs/measuring.md has the record's schema as tables, record.schema.json has it whole, docs/speedups.md the
catalogue of speed-ups, and docs/upgrade-rules.md the case files that the tests hold the rules of `flashmore
upgrade` to. With --check nothing is written: exit 1 says which file is not what its source makes.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import catalogue_table
import record_tables
import rules_page

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = "src/flashmore/measuring/record.schema.json"
PARTS: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("docs/measuring.md", "fields", record_tables.tables),
    ("docs/speedups.md", "catalogue", catalogue_table.table),
    ("docs/upgrade-rules.md", "rules", rules_page.chapters),
)
"""A page, the name of its part that is made, and what makes it."""


def with_part(page: str, name: str, content: str) -> str:
    """The page with this content between the part's two marks."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"wanted: a page with the lines {begin.strip()} and {end.strip()}; found: none")
    return f"{before}{begin}\n{content}\n{end}{after}"


def main() -> int:
    """Write or check; 1 where a page is not up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where a page differs")
    check = parser.parse_args().check
    pages = {
        name: (ROOT / name).read_text(encoding="utf-8") for name in (SCHEMA, *(page[0] for page in PARTS))
    }
    made = {name: with_part(pages[name], part, make()) for name, part, make in PARTS}
    made[SCHEMA] = record_tables.document()
    stale = [name for name in pages if pages[name] != made[name]]
    for name in stale:
        if not check:
            (ROOT / name).write_text(made[name], encoding="utf-8")
        print(f"{name} {'is not what its source makes' if check else 'is written anew'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
