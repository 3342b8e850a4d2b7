"""[tool.flashmore.upgrade]: which file counts, what its keys do, and what is said of invalid ones."""

from pathlib import Path

import pytest

from flashmore.errors import ConfigError
from flashmore.upgrade.rules import CODES
from flashmore.upgrade.search import search
from flashmore.upgrade.settings import Settings
from flashmore.upgrade.site import Searched, Site

ATTENTION = (
    "import torch\n\ndef attend(q, k, v):\n    return (q @ k.mT / q.size(-1) ** 0.5).softmax(-1) @ v\n"
)
SCALED = ATTENTION.replace(" / q.size(-1) ** 0.5", "")
OTHERS = CODES - {"FM001"}


def written(folder: Path, table: str) -> Path:
    path = folder / "pyproject.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'[project]\nname = "a"\n\n[tool.flashmore.upgrade]\n{table}\n', encoding="utf-8")
    return folder


def site(folder: Path, source: str, settings: Settings) -> Site:
    (folder / "model.py").write_text(source, encoding="utf-8")
    (found,) = search([folder / "model.py"], settings=settings)
    assert isinstance(found, Searched)
    return found.sites[0]


def test_the_nearest_file_with_the_table_counts(tmp_path: Path) -> None:
    inner = written(tmp_path, 'ignore = ["FM001"]') / "packages" / "a"
    inner.mkdir(parents=True)
    (inner / "pyproject.toml").write_text('[project]\nname = "inner"\n', encoding="utf-8")
    (inner / "model.py").write_text(ATTENTION, encoding="utf-8")
    assert Settings.read(inner / "model.py").codes == OTHERS
    written(inner, "")
    assert Settings.read(inner / "model.py").codes == CODES


@pytest.mark.parametrize(
    ("table", "applies"),
    [
        ("", True),
        ("select = []", False),
        ('select = ["ALL"]', True),
        ('select = ["FM0"]', True),
        ('select = ["manual-attention"]', True),
        ('ignore = ["fm001"]', False),
        ('ignore = ["FM"]', False),
        ('select = ["FM001"]\nignore = ["FM0"]', True),
        ('select = ["FM0"]\nignore = ["FM001"]', False),
        ('select = ["FM001"]\nignore = ["FM001"]', False),
    ],
)
def test_the_longer_prefix_decides_which_rules_apply(table: str, applies: bool, tmp_path: Path) -> None:
    assert ("FM001" in Settings.read(written(tmp_path, table)).codes) is applies


def test_options_replace_what_the_project_selects_or_add_to_what_it_ignores(tmp_path: Path) -> None:
    settings = Settings.read(written(tmp_path, 'ignore = ["FM001"]'))
    assert settings.with_options(["FM001"], [], []).codes == {"FM001"}
    assert settings.with_options([], ["ALL"], []).codes == frozenset()
    assert settings.with_options([], [], []).codes == OTHERS


def test_rules_are_ignored_in_the_files_of_a_pattern(tmp_path: Path) -> None:
    written(tmp_path, 'per-file-ignores = { "tests/*" = ["FM0"], "__init__.py" = ["ALL"] }')
    settings = Settings.read(tmp_path)
    applies = {
        name: "FM001" in settings.codes_in(tmp_path / name)
        for name in ("model.py", "tests/a.py", "tests/deep/a.py", "src/tests/a.py", "src/__init__.py")
    }
    assert applies == {
        "model.py": True,
        "tests/a.py": False,
        "tests/deep/a.py": False,
        "src/tests/a.py": True,
        "src/__init__.py": False,
    }


def test_the_oldest_version_of_torch_decides_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("torch>=1.13\n", encoding="utf-8")
    old = Settings.read(written(tmp_path, 'target-torch = "2.0"'))
    assert site(tmp_path, ATTENTION, old).verdict == "rewritten"
    refused = site(tmp_path, SCALED, old)
    assert refused.verdict == "refused"
    assert refused.reason == "target-torch is 2.0, but `scale` needs torch 2.1 or newer"
    assert site(tmp_path, SCALED, old.with_options(target_torch="2.1")).verdict == "rewritten"
    new = Settings.read(written(tmp_path, 'target-torch = "2.1.0"'))
    rewritten = site(tmp_path, SCALED, new)
    assert rewritten.verdict == "rewritten"
    assert not [each for each in rewritten.assumptions if "allows older" in each]
    assert any(
        "requirements.txt allows older" in each for each in site(tmp_path, SCALED, Settings()).assumptions
    )


@pytest.mark.parametrize(
    ("table", "found", "valid"),
    [
        ("exlude = []", "'exlude'", "exclude, ignore, per-file-ignores, select, target-torch"),
        ('exclude = "build"', "'build', a string", '["build", "*_pb2.py"]'),
        ('exclude = ["a", 1]', "['a', 1], a list with other values", '["build", "*_pb2.py"]'),
        ('exclude = ["a[z-a]"]', "bad character range z-a", "patterns as in .gitignore"),
        ('exclude = ["!build"]', "'!build'", "none with ! or #"),
        ('exclude = [""]', "''", "none with ! or #"),
        ('select = ["FM01x"]', "'FM01x'", "FM001 (manual-attention)"),
        ('ignore = ["manual-atention"]', "'manual-atention'", "FM001 (manual-attention)"),
        ("select = true", "True, a boolean", '["FM0"]'),
        ('per-file-ignores = ["a"]', "['a']", "{"),
        ('per-file-ignores = { "a" = "FM001" }', "'FM001', a string", "{"),
        ('per-file-ignores = { "a" = ["E501"] }', "'E501'", "FM001"),
        ("target-torch = 2.1", "2.1, a number", '"2.1"'),
        ('target-torch = ">=2.1"', "'>=2.1', a string", '"2.1"'),
    ],
)
def test_what_is_not_valid_is_named_with_what_would_be(
    table: str, found: str, valid: str, tmp_path: Path
) -> None:
    written(tmp_path, table)
    with pytest.raises(ConfigError) as raised:
        Settings.read(tmp_path)
    assert str(tmp_path / "pyproject.toml") in raised.value.wanted
    assert found in raised.value.found
    assert valid in raised.value.valid


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b"[tool\n", "line 1"),
        (b"a = '\xff'\n", "utf-8"),
        (b"a = " + b"9" * 5000, "digits"),
        (b"a = " + b"[" * 10_000, "recursion"),
        (b"tool.flashmore = 3\n", "3"),
        (b"tool.flashmore.upgrade = 3\n", "3"),
    ],
)
def test_a_file_that_is_not_toml_is_named(raw: bytes, found: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes(raw)
    with pytest.raises(ConfigError) as raised:
        Settings.read(tmp_path / "model.py")
    assert str(tmp_path / "pyproject.toml") in raised.value.wanted
    assert found in raised.value.found
