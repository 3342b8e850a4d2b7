"""`# flashmore: ignore`: which places it silences, and which it does not."""

from pathlib import Path

import pytest

from flashmore.upgrade.search import search_file
from flashmore.upgrade.site import Searched

HEAD = "import torch\n\ndef attend(q, k, v):\n"
LINES = ("    w = q @ k.mT{first}", "    w = w.softmax(-1){middle}", "    return w @ v{last}", "")


def found(folder: Path, head: str = HEAD, **comments: str) -> Searched:
    lines = "\n".join(LINES).format(**{"first": "", "middle": "", "last": ""} | comments)
    (folder / "model.py").write_text(head + lines, encoding="utf-8")
    result = search_file(folder / "model.py")
    assert isinstance(result, Searched)
    assert result.ignored + len(result.sites) == 1
    return result


@pytest.mark.parametrize(
    "comment",
    [
        "  # flashmore: ignore",
        "  # flashmore: ignore[FM001]",
        "  #flashmore:ignore[fm001, manual-attention]",
        "  # flashmore: ignore [FM001]",
        "  # noqa: E501  # flashmore: ignore  # a reference",
    ],
)
@pytest.mark.parametrize("where", ["first", "last"])
def test_a_comment_on_the_first_or_last_line_silences_a_place(
    comment: str, where: str, tmp_path: Path
) -> None:
    result = found(tmp_path, **{where: comment})
    assert (result.ignored, result.remarks) == (1, ())


@pytest.mark.parametrize(
    ("where", "comment"),
    [
        ("middle", "  # flashmore: ignore"),
        ("first", "  # flashmore: ignored"),
        ("first", "  # ignore"),
        ("first", "  # type: ignore"),
        ("first", '; s = "# flashmore: ignore"'),
    ],
)
def test_what_is_no_such_comment_silences_nothing(where: str, comment: str, tmp_path: Path) -> None:
    assert found(tmp_path, **{where: comment}).ignored == 0


@pytest.mark.parametrize("codes", ["", "[FM001]"])
def test_a_comment_for_the_file_silences_all_of_it(codes: str, tmp_path: Path) -> None:
    assert found(tmp_path, f"# flashmore: ignore-file{codes}\n{HEAD}").ignored == 1


@pytest.mark.parametrize("codes", ["[FM002]", " [FM002]", "[FM002"])
def test_a_comment_for_another_rule_silences_nothing(codes: str, tmp_path: Path) -> None:
    result = found(tmp_path, first=f"  # flashmore: ignore{codes}")
    assert (result.ignored, result.remarks) == (0, ())


def test_a_code_that_no_rule_has_is_told(tmp_path: Path) -> None:
    result = found(tmp_path, first="  # flashmore: ignore[FM999]")
    assert result.ignored == 0
    (remark,) = result.remarks
    assert remark.startswith("line 4: no rule is called 'FM999' in `# flashmore: ignore[FM999]`")


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_lines_end_as_python_ends_them(end: str, tmp_path: Path) -> None:
    source = HEAD + "\n".join(LINES).format(first="  # flashmore: ignore", middle="", last="")
    (tmp_path / "model.py").write_bytes(source.replace("\n", end).encode())
    result = search_file(tmp_path / "model.py")
    assert isinstance(result, Searched)
    assert result.ignored == 1
