"""Check the HTML files of a folder: every link inside it must work, and nothing may load from another server.

    python scripts/check_links.py site

Links to other servers are allowed, but not followed. The exit code is 1 if something is wrong.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

CSS_URL = re.compile(r"""(?:@import\s+|url\()\s*["']?([^"')\s]+)""")
NOT_FETCHED = ("canonical", "alternate", "prev", "next", "author", "license")
"""Values of `rel` for which a browser loads nothing from a <link>."""


class Page(HTMLParser):
    """The ids of a page, its links, and the addresses that a browser loads to show it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Collect what one tag adds."""
        values = {name: value or "" for name, value in attributes}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if "style" in values:
            self.loads += CSS_URL.findall(values["style"])
        if "src" in values:
            self.loads.append(values["src"])
        if "href" in values:
            loaded = tag == "link" and values.get("rel") not in NOT_FETCHED
            (self.loads if loaded else self.links).append(values["href"])

    def handle_data(self, data: str) -> None:
        """Collect what a <style> loads; elsewhere it is text."""
        if self.cdata_elem == "style":
            self.loads += CSS_URL.findall(data)


def problems(site: Path) -> Iterator[str]:
    """What is wrong with the pages and style sheets of a site, one line each."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()
        for link in page.loads:
            if urlsplit(link).netloc:
                yield f"{name}: loads from another server: {link}"
        for link in (*page.links, *page.loads):
            reason = _why_broken(link, path, site, pages)
            if reason is not None:
                yield f"{name}: {link}: {reason}"
    for path in sorted(site.rglob("*.css")):
        for link in CSS_URL.findall(path.read_text(encoding="utf-8")):
            if urlsplit(link).netloc:
                yield f"{path.relative_to(site).as_posix()}: loads from another server: {link}"


def _why_broken(link: str, path: Path, site: Path, pages: dict[Path, Page]) -> str | None:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    target = path
    if parts.path.startswith("/"):
        if path.name != "404.html":  # which a host shows at any path, so that its links cannot be relative
            return "an absolute path, which breaks where the site is not at the root of its host"
        target = site / unquote(parts.path).lstrip("/")
    elif parts.path:
        target = path.parent / unquote(parts.path)
    target = target.resolve()
    if target.is_dir():
        target /= "index.html"
    if not target.is_file():
        return "no such file"
    if parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
        return "no element has this id"
    return None


def main() -> int:
    """Check a folder; 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("site", type=Path, help="the folder of a built site")
    site = parser.parse_args().site.resolve()
    if not any(site.rglob("*.html")):
        parser.error(f"expected a folder with HTML files, found none in {site}; `make docs` builds one")
    found = list(problems(site))
    print(*found, f"{len(found)} broken links or addresses on other servers", sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
