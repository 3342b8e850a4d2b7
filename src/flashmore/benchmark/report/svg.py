"""Figures as SVG for embedding in a page: text stays text, colours follow the page, ids never clash."""

import io
import re
import warnings
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

from markupsafe import Markup

from flashmore.benchmark.plots.figure import INK
from flashmore.benchmark.report.values import Plot
from flashmore.plotting import matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
REFERENCE = re.compile(r'(?:url\(|href=")#([^)"]+)')
FILL = re.compile(r"(fill: )(#\w+)")
SMALLEST = 0.75
"""A plot may shrink to this share of its size before its frame scrolls; below, its text is illegible."""
# They would change with the date and matplotlib's version.
NO_METADATA: dict[str, None] = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def plot_of(figure: "Figure", name: str, title: str, description: str) -> Plot:
    """Save a figure as SVG; the output is deterministic."""
    buffer = io.BytesIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": "flashmore"}
    with warnings.catch_warnings(), matplotlib().rc_context(settings):
        # The reader's browser draws the text, and has more glyphs than matplotlib's font.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(buffer, format="svg", metadata=NO_METADATA)
    return Plot(name, title, description, buffer.getvalue())


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
