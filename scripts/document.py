"""Write what the documentation tells from the code's own data, or check that it is there.

    python scripts/document.py [--check]

docs/measuring.md has the record's schema as tables, docs/speedups.md the catalogue of speed-ups, and
docs/upgrade-rules.md the case files that the tests hold the rules of `flashmore upgrade` to. With --check
nothing is written: exit 1 says which page is not what its source makes.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import catalogue_table
import record_tables
import rules_page

DOCS = Path(__file__).resolve().parents[1] / "docs"
PARTS: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("measuring.md", "fields", record_tables.tables),
    ("speedups.md", "catalogue", catalogue_table.table),
    ("upgrade-rules.md", "rules", rules_page.chapters),
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
    stale = []
    for name, part, make in PARTS:
        page = (DOCS / name).read_text(encoding="utf-8")
        wanted = with_part(page, part, make())
        if page != wanted:
            stale.append(name)
            if not check:
                (DOCS / name).write_text(wanted, encoding="utf-8")
    for name in stale:
        print(f"docs/{name} {'is not what its source makes' if check else 'is written anew'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
