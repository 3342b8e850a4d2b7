"""Packages import each other as docs/architecture.md says, and in no other way."""

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
    "flashmore.specs",
    "flashmore.rules",
    "flashmore.cli.main",
    "flashmore.cli.look",
    "flashmore.cli.train",
    "flashmore.cli.upgrade",
    "flashmore.data.text",
    "flashmore.data.long_text",
    "flashmore.data.vocabulary",
    "flashmore.data.items",
    "flashmore.models.config",
    "flashmore.config",
    "flashmore.upgrade.verify.verifier",
    "flashmore.upgrade.search",
    "flashmore.upgrade.write",
)


def documented_rules() -> dict[str, set[str]]:
    section = (
        (ROOT / "docs" / "architecture.md")
        .read_text(encoding="utf-8")
        .split("## Import rules")[1]
        .split("## ")[0]
    )
    rows = {package: allowed for package, allowed in TABLE_ROW.findall(section) if package != "package"}
    everything = set(rows)
    return {
        package: everything if allowed == "anything" else set(re.findall(r"\w+", allowed)) & everything
        for package, allowed in rows.items()
    }


def package_of(module: str) -> str:
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


def test_every_package_is_in_the_table() -> None:
    packages = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in sources()}
    assert packages == set(documented_rules())


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_imports_only_what_its_package_may(path: Path) -> None:
    package = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    allowed = documented_rules()[package] | {package}
    ours = {package_of(module) for module in imports_of(path) if module.split(".")[0] == "flashmore"}
    assert ours <= allowed, f"{package} imports {sorted(ours - allowed)}"


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_what_help_needs_imports_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
