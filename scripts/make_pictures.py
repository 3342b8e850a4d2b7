"""Make the pictures of the README: an animated terminal (SVG) and a screenshot of a run's page (PNG).

    python scripts/make_pictures.py

Trains on the built-in names, which takes a minute, and needs Chromium or Chrome.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import wrap
from typing import Any

from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "pictures"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
COMMANDS = (
    "flashmore train --samples-every 100 --out runs/transformer",
    "flashmore generate runs/transformer --prefix ma --new-only --count 5 --seed 1",
    "flashmore page runs/transformer runs/bigram --out names.html",
)
BIGRAM = "flashmore train --model bigram --samples-every 100 --out runs/bigram"
COLUMNS, LINE, CHARACTER = 100, 18, 8.4
SECONDS, PAUSE = 14.0, 4.0
"""How long the recording takes, however long the commands took, and how long its end is shown."""
SHOWN_STEPS = 275
"""The progress of training is shown at multiples of this step."""
AS_IT_IS: Any = {"drop_whitespace": False, "replace_whitespace": False, "break_on_hyphens": False}
Line = tuple[float, str]


def run(command: str, folder: Path, began: float) -> list[Line]:
    """What a command prints, each line with the seconds since `began`."""
    environment = os.environ | {"COLUMNS": str(COLUMNS), "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
    words = [str(Path(sys.executable).with_name("flashmore")), *command.split()[1:]]
    lines = [(time.monotonic() - began, f"$ {command}")]
    with subprocess.Popen(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            printed = line.rstrip()
            step = re.match(r"step ([\d,]+) ", printed)
            if step is None or int(step[1].replace(",", "")) % SHOWN_STEPS == 0:
                lines += [
                    (time.monotonic() - began, part) for part in wrap(printed, COLUMNS, **AS_IT_IS) or [""]
                ]
    if process.returncode:
        raise SystemExit(f"{command} failed:\n" + "\n".join(line for _, line in lines))
    return [*lines, (time.monotonic() - began, "")]


def animation(lines: list[Line]) -> str:
    """An SVG in which the lines appear one after another, again and again; at once for reduced motion."""
    total, height, width = lines[-1][0], LINE * len(lines) + 32, round(CHARACTER * COLUMNS) + 32
    seconds = SECONDS + PAUSE
    rows, rules = [], []
    for number, (shown, line) in enumerate(lines):
        start = 100 * SECONDS / seconds * shown / total
        steps = f"0%, {start:.2f}% {{ opacity: 0 }} {start + 0.01:.2f}%, 100% {{ opacity: 1 }}"
        rules.append(f"@keyframes l{number} {{ {steps} }}")
        rules.append(f".l{number} {{ animation: l{number} {seconds:g}s step-end infinite }}")
        kind = " command" if line.startswith("$ ") else ""
        y = LINE * (number + 1) + 12
        rows.append(f"<text class='l{number}{kind}' x='16' y='{y}'>{escape(line)}</text>")
    style = "\n".join(
        (
            "text { font: 14px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace }",
            "text { white-space: pre; fill: #e8eaed } .command { fill: #82b7f5; font-weight: bold }",
            f"@media (prefers-reduced-motion: no-preference) {{ {' '.join(rules)} }}",
        )
    )
    label = "A terminal: flashmore trains on names, generates new ones, and writes a web page"
    size = f"viewBox='0 0 {width} {height}' role='img' aria-label='{label}'"
    ground = "<rect width='100%' height='100%' rx='8' fill='#14171b'/>"
    opened = f"<svg xmlns='http://www.w3.org/2000/svg' {size}>"
    return f"{opened}<style>{style}</style>{ground}{''.join(rows)}</svg>\n"


def screenshot(page: Path, picture: Path) -> None:
    """The first part of a page, as it opens, with a typed name."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--headless", "--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1080, "height": 1180}, device_scale_factor=1)
        opened.goto(f"{page.as_uri()}#count=8&name=emma&layer=1&head=3")
        opened.locator("html[data-checked=yes]").wait_for(state="attached")
        opened.screenshot(path=picture)
        browser.close()


def main() -> None:
    """Make both pictures."""
    FOLDER.mkdir(exist_ok=True)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run(BIGRAM, folder, 0.0)
        began = time.monotonic()
        lines = [line for command in COMMANDS for line in run(command, folder, began)]
        (FOLDER / "terminal.svg").write_text(animation(lines[:-1]), encoding="utf-8")
        screenshot(folder / "names.html", FOLDER / "page.png")


if __name__ == "__main__":
    main()
