"""`flashmore report`: records as a self-contained page, or as Markdown."""

from contextlib import ExitStack
from pathlib import Path

from tyro.conf import Positional

from flashmore.cli.page import ENDINGS
from flashmore.cli.parse import command, require_writable
from flashmore.errors import UsageError
from flashmore.files import disk_errors, replacing, write_all
from flashmore.terminal import write_lines

DEFAULT_PAGE = Path("report.html")


@command("report")
def main(
    records: Positional[tuple[Path, ...]], *, out: Path | None = None, markdown: Path | None = None
) -> int:
    """Turn records into one self-contained HTML page, or into Markdown with plots in separate files.

    Several records are shown side by side, with the differences between their machines marked.

    Args:
        records: Records, written by `flashmore bench … --out FILE` or `flashmore choose --out FILE`.
        out: HTML file to write. If omitted, report.html, or none with --markdown.
        markdown: Markdown file to write. Its plots are SVG files next to it.
    """
    page = DEFAULT_PAGE if out is None and markdown is None else out
    if not records:
        raise UsageError("at least one record", "none", "files written by `flashmore bench … --out FILE`")
    require_writable("--out", page, endings=ENDINGS)
    require_writable("--markdown", markdown, endings=(".md", ".markdown"))

    from flashmore.benchmark.report import pages
    from flashmore.measuring.result import read_record

    report = pages.report_on([(path.name, read_record(path)) for path in records])
    files: dict[Path, bytes] = {}
    if page is not None:
        files[page] = pages.html_page(report).encode()
    if markdown is not None:
        text, pictures = pages.markdown(report, markdown.stem)
        files |= {markdown.with_name(name): picture for name, picture in pictures.items()}
        files[markdown] = text.encode()
    with ExitStack() as written:  # all of them or none
        for path, content in files.items():
            written.enter_context(disk_errors(f"to write the report {path}", path))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_all(written.enter_context(replacing(path)), content)
    write_lines(map(str, files))
    return 0
