"""The arrows between the rooms are those of docs/architecture.md, and no other."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "flashmore"
TABLE_ROW = re.compile(r"^\| (\w+) \| (.+) \|$", re.MULTILINE)
WITHOUT_TORCH = (
    "flashmore",
    "flashmore.errors",
    "flashmore.backends.names",
    "flashmore.backends.rules",
    "flashmore.cli.main",
    "flashmore.cli.train",
    "flashmore.cli.upgrade",
    "flashmore.data.text",
    "flashmore.data.tokens",
    "flashmore.data.vocabulary",
    "flashmore.data.words",
    "flashmore.models.config",
    "flashmore.training.recipe",
    "flashmore.upgrade.prove.prover",
    "flashmore.upgrade.search",
    "flashmore.upgrade.write",
)


def documented_arrows() -> dict[str, set[str]]:
    section = (
        (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## Arrows")[1].split("## ")[0]
    )
    rows = {room: allowed for room, allowed in TABLE_ROW.findall(section) if room != "room"}
    everything = set(rows)
    return {
        room: everything if allowed == "anything" else set(re.findall(r"\w+", allowed)) & everything
        for room, allowed in rows.items()
    }


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module or ""


def sources() -> list[Path]:
    entries = (SOURCE / "__init__.py", SOURCE / "__main__.py")
    return sorted(path for path in SOURCE.rglob("*.py") if path not in entries)


def test_every_room_is_in_the_table() -> None:
    rooms = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in sources()}
    assert rooms == set(documented_arrows())


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    allowed = documented_arrows()[room] | {room}
    ours = {room_of(module) for module in imports_of(path) if module.split(".")[0] == "flashmore"}
    assert ours <= allowed, f"{room} imports {sorted(ours - allowed)}"


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_what_help_needs_imports_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
