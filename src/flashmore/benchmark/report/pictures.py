"""Figures as SVG that can stand in a page: text stays text, colours follow the page, ids never clash."""

import io
import re
import warnings
import xml.etree.ElementTree as ET
from typing import Any

from flashmore.benchmark.plots.figure import INK
from flashmore.benchmark.report.parts import Picture
from flashmore.plotting import matplotlib

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
REFERENCE = re.compile(r'(?:url\(|href=")#([^)"]+)')
PX = 96 / 72
"""CSS pixels a point."""
SMALLEST = 0.75
"""A plot may shrink to this share of its size before its frame scrolls; below, its text cannot be read."""


def drawable(value: Any) -> Any:
    """The same JSON value with every $ escaped: between two of them matplotlib reads formulas."""
    if isinstance(value, str):
        return value.replace("$", r"\$")
    if isinstance(value, dict):
        return {key: drawable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [drawable(entry) for entry in value]
    return value


def svg_file(picture: Picture) -> bytes:
    """A picture as an SVG file of its own; the same bytes every time."""
    mpl = matplotlib()
    buffer = io.BytesIO()
    with warnings.catch_warnings(), mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "flashmore"}):
        # The reader's browser has more letters than matplotlib's font, and draws them.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        picture.draw().savefig(buffer, format="svg", metadata={"Date": None, "Title": picture.title})
    return buffer.getvalue()


def svg_element(picture: Picture) -> str:
    """A picture as an `<svg>` element for a page, with a title and a description for who cannot see it."""
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", XLINK)
    content = svg_file(picture)
    root = ET.fromstring(content)
    wanted = set(REFERENCE.findall(content.decode()))
    for element in list(root):
        # A style sheet in a picture would be the whole page's.
        if element.tag == f"{{{SVG}}}metadata" or element.find(f"{{{SVG}}}style") is not None:
            root.remove(element)
    for element in root.iter():
        if element.get("id") not in wanted:
            element.attrib.pop("id", None)
        _make_own(element, picture.name)
    _describe(root, picture)
    return ET.tostring(root, encoding="unicode")


def _make_own(element: ET.Element, name: str) -> None:
    """Give ids and references a prefix, and the plots' grey and its text the page's colours."""
    for key, value in list(element.attrib.items()):
        if key == "id":
            value = f"{name}-{value}"
        elif key == f"{{{XLINK}}}href":
            value = value.replace("#", f"#{name}-", 1)
        value = value.replace("url(#", f"url(#{name}-")
        if key == "style":
            value = value.replace(INK, "var(--plot-ink)")
            if element.tag == f"{{{SVG}}}text":
                value = _legible(value)
        element.set(key, value)


def _legible(style: str) -> str:
    """Move a text's own colour towards the page's ink: a line may be paler than a word."""
    for declaration in style.split(";"):
        key, _, value = declaration.partition(":")
        if key.strip() == "fill" and "#" in value:
            return f"{style}; fill: color-mix(in srgb, {value.strip()} 55%, var(--ink))"
    return style


def _describe(root: ET.Element, picture: Picture) -> None:
    width, height = (float(root.get(side, "0").removesuffix("pt")) for side in ("width", "height"))
    for side in ("width", "height"):
        root.attrib.pop(side, None)
    labels = f"{picture.name}-title", f"{picture.name}-description"
    root.set("role", "img")
    root.set("aria-labelledby", " ".join(labels))
    root.set("style", f"width: {PX * width:.0f}px; min-width: {SMALLEST * PX * width:.0f}px")
    root.set("viewBox", f"0 0 {width:g} {height:g}")
    for tag, label, text in zip(
        ("desc", "title"), reversed(labels), (picture.description, picture.title), strict=True
    ):
        told = ET.Element(f"{{{SVG}}}{tag}", {"id": label})
        told.text = text
        root.insert(0, told)
