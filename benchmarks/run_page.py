"""How fast the page of a run is, and how close to PyTorch: opened from disk in headless Chromium.

    python benchmarks/run_page.py RUN [RUN…]

Prints the size of the page, when the first name is shown after opening (median of several openings), how
many names are drawn in a second, the largest difference of the logits of 200 names from PyTorch's in float32,
and how many of 1,000 names are the same as those of `flashmore generate`.
"""

import json
import shutil
import statistics
import subprocess
import sys
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from playwright.sync_api import Page, sync_playwright

from flashmore.data.vocabulary import EOS
from flashmore.generation.load import load_model
from flashmore.generation.options import GenerateOptions
from flashmore.generation.sample import generate
from flashmore.runs import Run
from flashmore.share.page import page

OPENINGS, COUNT, COMPARED = 9, 1000, 200
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRAW = """async (count) => {
  const form = document.forms.options, status = document.getElementById("status");
  const began = performance.now();
  form.count.value = count;
  form.dispatchEvent(new Event("input"));
  while (!status.textContent.includes(`${count} names`)) await new Promise((resume) => setTimeout(resume, 5));
  return (performance.now() - began) / 1000;
}"""
NAMES = """() =>
  [...document.querySelectorAll("#made section:first-child .name")].map((name) => name.textContent)"""


def opened(browser: Any, path: Path) -> Page:
    """The page in a new tab, after it has checked itself."""
    made: Page = browser.new_page()
    made.goto(path.as_uri())
    made.locator("html[data-checked=yes]").wait_for(state="attached")
    return made


def largest_difference(run: Run, path: Path) -> float:
    """The largest difference of logits, by the page's own modules in Node.js."""
    names = generate(run, GenerateOptions(count=COMPARED, seed=2)).names
    rows = [[EOS, *run.vocabulary.encode(name.text)] for name in names]
    harness = Path(__file__).parents[1] / "tests" / "share" / "engine.mjs"
    modules = resources.files("flashmore.share").joinpath("page")

    questions = json.dumps([{"ask": "logits", "model": 0, "ids": ids} for ids in rows])
    done = subprocess.run(
        ["node", harness, str(modules), path], input=questions, capture_output=True, text=True, check=True
    )
    model = load_model(run, "cpu")
    with torch.inference_mode():
        return max(
            float((torch.tensor(found) - model(torch.tensor([ids]))[0]).abs().max())
            for ids, found in zip(rows, json.loads(done.stdout), strict=True)
        )


def main() -> None:
    """Measure the page of the runs; the first one draws the names."""
    if not sys.argv[1:]:
        raise SystemExit(__doc__)
    runs = [Run.open(path) for path in sys.argv[1:]]
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        alone, all_of_them = Path(folder, "one.html"), Path(folder, "all.html")
        alone.write_text(page(runs[:1]), encoding="utf-8")
        all_of_them.write_text(page(runs), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--headless", "--no-sandbox"])
        first = []
        for _ in range(OPENINGS):
            tab = opened(browser, all_of_them)
            first.append(tab.evaluate("performance.getEntriesByName('first name')[0].startTime"))
            tab.close()
        tab = opened(browser, alone)
        seconds = [tab.evaluate(DRAW, count) for count in (COUNT - 1, COUNT, COUNT - 1, COUNT)]
        names = tab.evaluate(NAMES)
        browser.close()
        expected = [name.text for name in generate(runs[0], GenerateOptions(count=COUNT, seed=1)).names]
        same = sum(mine == theirs for mine, theirs in zip(names, expected, strict=True))
        difference = largest_difference(runs[0], alone)
        spread = f"{min(first):.0f} to {max(first):.0f}"
        print(f"page of {len(runs)} runs: {all_of_them.stat().st_size / 1e6:.2f} MB")
        print(f"first name: {statistics.median(first):.0f} ms after opening ({spread})")
        print(f"names: {COUNT / statistics.median(seconds):,.0f} a second")
        print(f"logits of {COMPARED} names: differ from PyTorch's by at most {difference:.1e}")
        print(f"same seed, {COUNT:,} names: {same:,} as `flashmore generate` gives them")


if __name__ == "__main__":
    main()
