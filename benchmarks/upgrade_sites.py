"""Evaluate `flashmore upgrade` on public repositories, given a table of places and right answers.

    python benchmarks/upgrade_sites.py --sites TSV --checkouts FOLDER [--target-torch 2.5] [--json]

TSV has the columns id, repo (owner/name), commit, path, lines (first-last), symbol and verdict (REWRITE,
GUARDED, CONTRACT, LEAVE, ALREADY). FOLDER contains a checkout of each repository, named owner+name, at the
row's commit; a leading `src/` of a path may be missing there. Only the extracted lines are run, by the
tests.
"""

import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from flashmore.errors import DataError, FlashmoreError
from flashmore.upgrade.search import search
from flashmore.upgrade.settings import Settings
from flashmore.upgrade.site import Searched, Site
from flashmore.upgrade.verify.verifier import Verifier

WANTED = {"REWRITE": 0.90, "GUARDED": 0.75}


@dataclass(frozen=True)
class Options:
    """Search the checkouts, test what is rewritten, and count what was right."""

    sites: Path
    """Table of places and right answers."""
    checkouts: Path
    """Folder with the checkouts."""
    json: bool = False
    """Print the result to stdout as JSON, and nothing else."""
    verify: bool = True
    """Test the rewrites of the places in the table."""
    target_torch: str | None = None
    """Oldest version of torch that rewrites may need; None means what each repository requires."""
    processes: int = os.cpu_count() or 1
    """Number of processes that search."""


@dataclass(frozen=True)
class Row:
    """One site of the table."""

    id: str
    repo: str
    path: str
    first: int
    last: int
    verdict: str


def read_rows(table: Path) -> list[Row]:
    """The table's rows.

    Raises:
        DataError: it is missing, or a column is.
    """
    try:
        with table.open(encoding="utf-8", newline="") as file:
            return [_row(line) for line in csv.DictReader(file, delimiter="\t")]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            "a table of sites", f"{table}: {error}", "columns id repo commit path lines symbol verdict"
        ) from None


def _row(line: dict[str, str]) -> Row:
    first, last = line["lines"].split()[0].split("-")
    return Row(line["id"], line["repo"].split()[0], line["path"], int(first), int(last), line["verdict"])


def folder_of(row: Row, checkouts: Path) -> Path:
    """The checkout of a row's repository."""
    return checkouts / row.repo.replace("/", "+")


def file_of(row: Row, checkouts: Path) -> Path:
    """The file of a row."""
    folder = folder_of(row, checkouts)
    path = folder / row.path
    return path if path.exists() else folder / row.path.removeprefix("src/")


def reports_at(row: Row, found: Searched | None) -> list[Site]:
    """The sites whose lines overlap a row's."""
    if found is None:
        return []
    return [site for site in found.sites if site.line <= row.last and site.end_line >= row.first]


def judged(row: Row, sites: Sequence[Site], verifier: Verifier | None) -> dict[str, Any]:
    """What was reported for a row, and whether that is right."""
    verdicts = {site.verdict for site in sites}
    rewritten = [site for site in sites if site.verdict == "rewritten"]
    verifications = [verifier.verify(site) for site in rewritten] if verifier is not None else []
    right = {
        "REWRITE": bool(rewritten),
        "GUARDED": bool(rewritten),
        "CONTRACT": verdicts == {"refused"},
        "LEAVE": verdicts <= {"refused"},
        "ALREADY": verdicts <= {"already fused"},
    }[row.verdict]
    return {
        "id": row.id,
        "wanted": row.verdict,
        "found": bool(sites),
        "verdicts": sorted(verdicts),
        "right": right,
        "reasons": [site.reason for site in sites if site.verdict == "refused"],
        "guards": [site.guard for site in rewritten if site.guard],
        "tested": all(verification.passed for verification in verifications) if verifications else None,
        "why_not": [verification.why_not for verification in verifications if not verification.passed],
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The counts, and whether they are what is asked for."""
    counts: dict[str, Any] = {}
    for wanted in ("REWRITE", "GUARDED", "CONTRACT", "LEAVE", "ALREADY"):
        group = [row for row in rows if row["wanted"] == wanted]
        counts[wanted] = {
            "sites": len(group),
            "found": sum(row["found"] for row in group),
            "right": sum(row["right"] for row in group),
            "tested": sum(row["right"] and row["tested"] is True for row in group),
        }
    good = all(counts[name]["found"] == counts[name]["sites"] for name in WANTED)
    good &= all(counts[name]["right"] == counts[name]["sites"] for name in ("CONTRACT", "LEAVE", "ALREADY"))
    good &= all(counts[name]["tested"] >= share * counts[name]["sites"] for name, share in WANTED.items())
    return {"counts": counts, "as_asked": good}


def others(searched: dict[Path, Searched], rows: Sequence[Row], checkouts: Path) -> dict[str, Any]:
    """What was reported in files that the table does not name."""
    named = {file_of(row, checkouts).resolve() for row in rows}
    rest = [found for path, found in searched.items() if path not in named]
    verdicts = Counter(site.verdict for found in rest for site in found.sites)
    rewritten = [
        f"{s.path}:{s.line} {s.symbol}" for found in rest for s in found.sites if s.verdict == "rewritten"
    ]
    return {"files": len(rest), "verdicts": dict(verdicts), "rewritten": rewritten}


def run(options: Options) -> dict[str, Any]:
    """The whole answer."""
    rows = read_rows(options.sites)
    folders = sorted({folder_of(row, options.checkouts) for row in rows})
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise DataError("a checkout of every repository", f"none at {missing[0]}", "folders named owner+name")
    searched: dict[Path, Searched] = {}
    not_read = []
    settings = Settings().with_options(target_torch=options.target_torch)
    for found in search(folders, processes=options.processes, settings=settings):
        if isinstance(found, Searched):
            searched[Path(found.path).resolve()] = found
        else:
            not_read.append({"path": found.path, "reason": found.reason})
    with Verifier() as verifier:
        judgements = [
            judged(
                row,
                reports_at(row, searched.get(file_of(row, options.checkouts).resolve())),
                verifier if options.verify else None,
            )
            for row in rows
        ]
    return {
        **summary(judgements),
        "sites": judgements,
        "other_files": others(searched, rows, options.checkouts),
        "not_read": not_read,
    }


def show(answer: dict[str, Any]) -> None:
    """The answer for people."""
    for row in answer["sites"]:
        mark = "ok " if row["right"] and row["tested"] is not False else "NO "
        what = ", ".join(row["verdicts"]) or "no report"
        verification = {True: "tested", False: "not tested", None: ""}[row["tested"]]
        print(f"{mark}{row['id']:18} {row['wanted']:9} {what:24} {verification} {'; '.join(row['why_not'])}")
    for name, count in answer["counts"].items():
        found, right, passed = (count[each] for each in ("found", "right", "tested"))
        print(f"{name:9} {count['sites']} sites, {found} found, {right} right, {passed} tested")
    rest = answer["other_files"]
    print(f"other files: {rest['files']}, {rest['verdicts']}; not read: {len(answer['not_read'])}")


def main() -> int:
    """Exit 0 where the counts are as asked, 1 where not, 2 for bad input."""
    options = tyro.cli(Options, description=__doc__)
    try:
        answer = run(options)
    except FlashmoreError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps(answer, indent=2))
    else:
        show(answer)
    return 0 if answer["as_asked"] else 1


if __name__ == "__main__":
    sys.exit(main())
