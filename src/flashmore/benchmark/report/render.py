"""Renders a report as one self-contained HTML page, and as GitHub-flavoured Markdown with separate plots."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from flashmore.benchmark.plots import INK
from flashmore.benchmark.report.compose import Report
from flashmore.benchmark.report.values import Plot

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
REFERENCE = re.compile(r'(?:url\(|href=")#([^)"]+)')
FILL = re.compile(r"(fill: )(#\w+)")
SMALLEST = 0.75
"""A plot may shrink to this share of its size before its frame scrolls; below, its text is illegible."""
SPECIAL = re.compile(r"([\\`*_{}\[\]<>&|#~$])")
HOW_TO_READ = (
    "A time is the median of all samples; half of them lie between the quartiles. All variants of a record "
    "ran in short alternating blocks on one machine.",
    "manual / flash = 1.2 means that flash is 1.2 times as fast as manual. The interval holds the true ratio "
    "in 95 of 100 such measurements. The verdict is faster or slower only where the whole interval lies "
    "outside 0.99 – 1.01.",
    "Compare variants within a record. Between two records, everything that the table of machines marks with "
    "≠ differs too.",
)


def html_page(report: Report) -> str:
    """Render a report as a page; all values from records are escaped."""
    return _render("page.html", report, svg_element=svg_element, version=version("flashmore"))


def markdown(report: Report, stem: str) -> tuple[str, dict[str, bytes]]:
    """Render a report as Markdown.

    Args:
        report: the report.
        stem: prefix of the plots' file names.

    Returns:
        The text, and the plots by file name.
    """
    pictures = {
        f"{stem}-record-{section.number}-{plot.name}.svg": plot.svg
        for section in report.sections
        for plot in section.summary.plots
    }
    return _render("page.md", report, escaped_for_markdown, stem=stem), pictures


def _render(name: str, report: Report, finalize: Callable[[Any], Markup] | None = None, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("flashmore.benchmark.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name).render(report=report, how_to_read=HOW_TO_READ, **values)


def escaped_for_markdown(value: Any) -> Markup:
    """Escape text for Markdown and the HTML in it; called for every value of the template."""
    return value if isinstance(value, Markup) else Markup(SPECIAL.sub(r"\\\1", str(value)))


def svg_element(plot: Plot, prefix: str) -> Markup:
    """A plot as an `<svg>` element for a page, with prefixed ids."""
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", XLINK)
    root = ET.fromstring(plot.svg)
    referenced = set(REFERENCE.findall(plot.svg.decode()))
    for element in root.iter():
        if element.get("id") not in referenced:
            element.attrib.pop("id", None)
        element.attrib.update({key: _own(element, key, prefix) for key in element.attrib})
    del root.attrib["height"]  # it follows from the width and the viewBox
    width = float(root.attrib["width"].removesuffix("pt"))
    root.attrib |= {"role": "img", "aria-label": plot.title, "style": f"min-width: {SMALLEST * width:.0f}pt"}
    return Markup(ET.tostring(root, encoding="unicode"))


def _own(element: ET.Element, key: str, prefix: str) -> str:
    """Prefix ids and references, and replace the plot's grey and text colour with the page's."""
    value = element.attrib[key].replace("url(#", f"url(#{prefix}").replace(INK, "var(--plot-ink)")
    if key == "id":
        return prefix + value
    if key == f"{{{XLINK}}}href":
        return value.replace("#", f"#{prefix}", 1)
    if element.tag == f"{{{SVG}}}text":  # a line may be paler than a word
        return FILL.sub(r"\1color-mix(in srgb, \2 55%, var(--ink))", value)
    return value
