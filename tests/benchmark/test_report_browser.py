"""The page of a report in a real browser: wide and narrow, by keyboard, in the light and in the dark."""

import json
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser

from browsers import Visit
from flashmore.cli.main import main

GOLDEN = Path(__file__).parents[1] / "golden" / "records"
LEGIBLE = 4.5
"""Contrast of text against its ground: WCAG 2.2, success criterion 1.4.3."""
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => [r, g, b].map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
  const ground = element => {
    for (; element; element = element.parentElement) {
      const color = rgba(getComputedStyle(element).backgroundColor);
      if (color[3] === 255) return color;
    }
    throw new Error("no ground");
  };
  const seen = {};
  for (const element of document.querySelectorAll("body *")) {
    const words = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!words || element.closest("title, desc, defs")) continue;
    const style = getComputedStyle(element);
    const color = element.closest("svg") ? style.fill : style.color;
    const [high, low] = [luminance(rgba(color)), luminance(ground(element))].sort((a, b) => b - a);
    seen[`${element.tagName} ${color}`] = (high + 0.05) / (low + 0.05);
  }
  return seen;
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two machines, every kind of record, one of them interrupted and with a hostile name."""
    folder = tmp_path_factory.mktemp("report")
    records = [GOLDEN / f"{kind}-cpu.json" for kind in ("step", "attention", "choose")]
    for kind in ("step", "attention"):
        record = json.loads((GOLDEN / f"{kind}-cpu.json").read_text(encoding="utf-8"))
        record["complete"] = False
        record["environment"] |= {
            "device": "cuda",
            "device_name": "Invented<script>document.title = 'broken'</script> GPU",
        }
        records.append(folder / f"{kind}.json")
        records[-1].write_text(json.dumps(record), encoding="utf-8")
    page = folder / "report.html"
    assert main(["report", *map(str, records), "--out", str(page)]) == 0
    return page


def test_it_asks_for_nothing_but_itself_and_does_not_complain(browser: Browser, report: Path) -> None:
    with Visit(browser, report, 1280, "light") as visit:
        visit.page.wait_for_timeout(200)
        assert visit.requests == [report.as_uri()]
        assert visit.complaints == []
        assert visit.page.title().startswith("flashmore")
        assert visit.page.locator("script").count() == 0


def test_every_plot_is_drawn(browser: Browser, report: Path) -> None:
    with Visit(browser, report, 1280, "light") as visit:
        plots = visit.page.locator("svg[role=img]").all()
        assert len(plots) == 6
        for plot in plots:
            box = plot.bounding_box()
            assert box is not None
            assert box["width"] > 200
            assert box["height"] > 100
            drawn = plot.evaluate(
                """svg => [...svg.querySelectorAll("path, use")].filter(shape => {
                  const box = shape.getBoundingClientRect();
                  return box.width + box.height > 0 && !shape.closest("defs");
                }).length"""
            )
            assert drawn > 20
            assert plot.evaluate(
                """svg => [...svg.querySelectorAll("use")].every(use =>
                  svg.contains(document.querySelector(use.getAttribute("xlink:href"))))"""
            )
            assert plot.locator("text").count() > 5


def test_tables_are_reached_and_scrolled_by_keyboard(browser: Browser, report: Path) -> None:
    with Visit(browser, report, 360, "light") as visit:
        page = visit.page
        regions = page.locator(".scroll[role=region]")
        count = regions.count()
        assert count >= page.locator("table").count() > 5
        reached, scrolled, seen = set(), 0, 0
        while True:
            page.keyboard.press("Tab")
            place = page.evaluate(
                "() => [...document.querySelectorAll('.scroll')].indexOf(document.activeElement)"
            )
            seen += 1
            if place in reached or seen > count + 40:
                break
            if place < 0:
                continue
            reached.add(place)
            if regions.nth(place).evaluate("e => e.querySelector('table') && e.scrollWidth > e.clientWidth"):
                page.keyboard.press("ArrowRight")
                page.wait_for_function("() => document.activeElement.scrollLeft > 0", timeout=5000)
                scrolled += 1
        assert reached == set(range(count))
        assert scrolled > 3


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_itself_never_scrolls_sideways(browser: Browser, report: Path, width: int) -> None:
    with Visit(browser, report, width, "light") as visit:
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        smallest = visit.page.evaluate(
            "Math.min(...[...document.querySelectorAll('p, li, td, th')]"
            ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
        )
        assert smallest >= 14


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_axe_finds_no_violation(
    browser: Browser, report: Path, width: int, scheme: Literal["light", "dark"]
) -> None:
    with Visit(browser, report, width, scheme) as visit:
        assert visit.violations() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_can_be_read_on_its_ground(
    browser: Browser, report: Path, scheme: Literal["light", "dark"]
) -> None:
    with Visit(browser, report, 1280, scheme) as visit:
        contrasts = visit.page.evaluate(CONTRASTS)
        assert len(contrasts) > 10
        assert {what: contrast for what, contrast in contrasts.items() if contrast < LEGIBLE} == {}


def test_the_dark_page_is_dark(browser: Browser, report: Path) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        with Visit(browser, report, 360, scheme) as visit:
            grounds.append(visit.page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
    assert grounds[0] == "rgb(255, 255, 255)"
    assert max(int(part) for part in grounds[1].removeprefix("rgb(").removesuffix(")").split(",")) < 64
