"""Write the catalogue of speed-ups as a table into docs/speedups.md, or check that it is there.

python scripts/document_speedups.py
python scripts/document_speedups.py --check
"""

import argparse
import sys
from pathlib import Path

from flashmore.speedups import CATALOGUE, Entry

PAGE = Path(__file__).resolve().parents[1] / "docs" / "speedups.md"
BEGIN, END = "<!-- catalogue: begin -->\n", "<!-- catalogue: end -->\n"
HEAD = "| name | what | where the time goes without it | devices | exactness | costs | shown by |"


def table() -> str:
    """Every entry, in the order in which the ladder adds them."""
    rows = [HEAD, "|" + " --- |" * (HEAD.count("|") - 1)]
    return "\n".join(rows + [_row(name, entry) for name, entry in CATALOGUE.items()]) + "\n"


def _row(name: str, entry: Entry) -> str:
    cells = (
        f"`{name}`",
        f"[{entry.title}]({entry.page})",
        entry.why,
        ", ".join(entry.devices),
        entry.exactness,
        entry.costs,
        f"`{entry.test}`",
    )
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Write or check; 1 where the page is not up to date."""
    parser = argparse.ArgumentParser(description="Document the catalogue of speed-ups.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where the page differs")
    check = parser.parse_args().check
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    wanted = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if check:
        return int(page != wanted)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
