"""`flashmore report`: records as a self-contained page, or as Markdown."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from flashmore.cli.page import ENDINGS
from flashmore.cli.parse import parse, require_writable
from flashmore.errors import UsageError
from flashmore.files import disk_errors, replacing, write_all
from flashmore.terminal import write_lines

DEFAULT_PAGE = Path("report.html")


@dataclass(frozen=True)
class Report:
    """Turn records into one self-contained HTML page, or into Markdown with plots in separate files.

    Several records are shown side by side, with the differences between their machines marked.
    """

    records: Positional[tuple[Path, ...]]
    """Records, written by `flashmore bench … --out FILE` or `flashmore choose --out FILE`."""
    out: Path | None = None
    """HTML file to write. If omitted, report.html, or none with --markdown."""
    markdown: Path | None = None
    """Markdown file to write. Its plots are SVG files next to it."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore report`."""
    command = parse(Report, "report", argv)
    page = DEFAULT_PAGE if command.out is None and command.markdown is None else command.out
    if not command.records:
        raise UsageError("at least one record", "none", "files written by `flashmore bench … --out FILE`")
    require_writable("--out", page, endings=ENDINGS)
    require_writable("--markdown", command.markdown, endings=(".md", ".markdown"))

    from flashmore.benchmark.report.pages import html_page, markdown, report_on
    from flashmore.measuring.result import read_record

    report = report_on([(path.name, read_record(path)) for path in command.records])
    files: dict[Path, bytes] = {}
    if page is not None:
        files[page] = html_page(report).encode()
    if command.markdown is not None:
        text, pictures = markdown(report, command.markdown.stem)
        files |= {command.markdown.with_name(name): picture for name, picture in pictures.items()}
        files[command.markdown] = text.encode()
    with ExitStack() as written:  # all of them or none
        for path, content in files.items():
            written.enter_context(disk_errors(f"to write the report {path}", path))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_all(written.enter_context(replacing(path)), content)
    write_lines(map(str, files))
    return 0
