"""Notebooks as one Python source: what of them is Python, where it is, and that an edit changes only that."""

import ast
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.inputtransformer2 import TransformerManager

from flashmore.errors import UsageError
from flashmore.upgrade.edits import edited
from flashmore.upgrade.notebooks.notebook import (
    LARGEST_NOTEBOOK,
    MOST_PARTS,
    Notebook,
    NotEditable,
    read_notebook,
)
from flashmore.upgrade.project.files import LARGEST, Unreadable
from flashmore.upgrade.report import FileReport
from flashmore.upgrade.search import search, search_file
from flashmore.upgrade.site import Edit, NotRead, Searched
from flashmore.upgrade.write import write

ATTENTION = """\
class Head(nn.Module):
    def forward(self, q, k, v):
        att = (q @ k.transpose(-2, -1)) / math.sqrt(k.size(-1))
        att = F.softmax(att, dim=-1)
        return att @ v
"""
IMPORTS = "import math\nimport torch\nfrom torch import nn\nfrom torch.nn import functional as F"


def code(source: str | list[str], **members: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {},
        "outputs": [],
        "source": source,
    }
    return made | members


def markdown(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def document(*cells: dict[str, Any], **members: Any) -> bytes:
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5} | members).encode()


def python(*cells: str) -> Notebook:
    return read_notebook(document(*map(code, cells)))


def places(notebook: bytes, folder: Path) -> Searched:
    (folder / "a.ipynb").write_bytes(notebook)
    found = search_file(folder / "a.ipynb")
    assert isinstance(found, Searched)
    return found


@pytest.mark.parametrize(
    ("cell", "becomes"),
    [
        ("x = 1", "x = 1\n"),
        ("x = 1\n", "x = 1\n"),
        ("%matplotlib inline\nx = 1", "get_ipython()\nx = 1\n"),
        ("!pip install 'a[b]>=1\nx = '''%y'''", "get_ipython()\nx = '''%y'''\n"),
        ("if a:\n    !ls {a} \\\n      more\n    x = 1", "if a:\n    get_ipython()\n\n    x = 1\n"),
        ("files = !ls *.py\nt = %timeit -o f()", "files = get_ipython()\nt = get_ipython()\n"),
        ("torch.nn?\n?torch\n%time??", "get_ipython()\nget_ipython()\nget_ipython()\n"),
        ("%%time\nx = 1", "get_ipython()\nx = 1\n"),
        ("\n%%capture out\n%%time\n!ls\nx = 1", "\nget_ipython()\nget_ipython()\nget_ipython()\nx = 1\n"),
        ("%ls\nx = (7\n%2)\ny = 7 \\\n%2", "get_ipython()\nx = (7\n%2)\ny = 7 \\\n%2\n"),
        ('%ls\ns = """\n%no magic\n!nor this\n"""', 'get_ipython()\ns = """\n%no magic\n!nor this\n"""\n'),
        ("%ls\n# don't (\n!ls", "get_ipython()\n# don't (\nget_ipython()\n"),
        ("%ls\nfrom __future__ import division\nx = 1", "get_ipython()\nget_ipython()\nx = 1\n"),
        ("from __future__ import division\nx = 1", "get_ipython()\nx = 1\n"),
        ("x = await f()", "x = await f()\n"),
        ("x = a != b", "x = a != b\n"),
    ],
)
def test_magics_become_calls_and_lines_stay_where_they_are(cell: str, becomes: str) -> None:
    notebook = python(cell)
    assert notebook.source == becomes
    assert notebook.left_out == ()
    if "%%" not in cell and "__future__" not in cell:
        assert calls_of_magics(TransformerManager().transform_cell(cell)) == calls_of_magics(becomes)


def calls_of_magics(source: str) -> str:
    """The syntax tree of a cell, with no difference between the functions of IPython that run magics."""

    class Magics(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.AST:
            match node.func:
                case ast.Attribute(value=ast.Call(func=ast.Name(id="get_ipython")) as call):
                    return call
            return self.generic_visit(node)

    return ast.dump(Magics().visit(ast.parse(source)))


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        ("%%bash\necho x = 1", "`%%bash`"),
        ("\n%%html\n<b>x</b>", "`%%html`"),
        ("%%time\n%%writefile a.py\nx = 1", "`%%writefile`"),
        ("print 'x'", "line 1"),
        ("%ls\nx = (", "line 2"),
        ("return x", "'return' outside function"),
        (">>> x = 1", "not valid"),
        ("x = '\ud800'", "surrogates not allowed"),
        ("x = 1\0", "null"),
        ("-" * 100_000 + "1", "nested too deeply"),
    ],
    ids=["bash", "html", "nested", "Python 2", "open", "return", "prompt", "surrogate", "null", "deep"],
)
def test_a_cell_that_is_no_python_is_left_out_alone(cell: str, why: str) -> None:
    notebook = python("x = 1", cell, "y = 2")
    ((number, reason),) = notebook.left_out
    assert number == 2
    assert why in reason
    assert notebook.source == "x = 1\ny = 2\n"


def test_cells_count_from_1_with_those_that_are_no_code() -> None:
    cells = (
        markdown("# a"),
        code("x = 1\ny = 2"),
        {**markdown("%ls"), "cell_type": "raw"},
        code(""),
        code("z = 3"),
    )
    notebook = read_notebook(document(*cells))
    assert notebook.source == "x = 1\ny = 2\nz = 3\n"
    assert [notebook.place(line) for line in (1, 2, 3)] == [(2, 1), (2, 2), (5, 1)]
    assert notebook.worded("see line 2; lines 1-2; lines 1, 3; `line 2`; line 4") == (
        "see cell 2, line 2; cell 2, lines 1-2; cell 2, line 1, cell 5, line 1; `line 2`; line 4"
    )


@pytest.mark.parametrize(
    "data",
    [document(), document(markdown("x")), document(code("")), document(code([])), document(code("\n "))],
    ids=["no cells", "no code", "empty", "empty list", "blank"],
)
def test_a_notebook_without_code_holds_nothing(data: bytes, tmp_path: Path) -> None:
    found = places(data, tmp_path)
    assert (found.source, found.sites) == ("", ())


R = {"kernelspec": {"display_name": "R", "language": "R", "name": "ir"}}
BAD = {
    "empty": (b"", "not a valid notebook: Expecting '{' in line 1"),
    "a list": (b"[]", "Expecting '{' in line 1"),
    "cut off": (document(code("x = 1"))[:-9], "not a valid notebook"),
    "a comma": (b'{"cells": [],\n}', "in line 2"),
    "more": (document() + b"\n{}", "Extra data in line 2"),
    "in an output": (b'{"cells": [{"cell_type": "code", "outputs": [1,\n,2]}]}', "in line 2"),
    "latin-1": (document(code("x")).replace(b'"x"', b'"\xe9"'), "not UTF-8, as notebooks are: byte "),
    "mark": (b"\xef\xbb\xbf" + document(), "in line 1"),
    "twice": (b'{"cells": [{"source": "x",\n"source": "y"}]}', "Repeated key 'source' in line 2"),
    "cells twice": (b'{"cells": [], "nbformat": 4, "cells": []}', "Repeated key 'cells'"),
    "format 3": (b'{"nbformat": 3, "worksheets": [{"cells": []}]}', "format 3, and only format 4"),
    "format 3 ": (b'{"nbformat": 3, "worksheets": []}', "`jupyter nbconvert --to notebook --inplace`"),
    "format 5": (b'{"cells": [], "nbformat": 5}', "its nbformat is 5"),
    "no format": (b'{"cells": []}', "it has no nbformat"),
    "no cells": (b'{"nbformat": 4}', "it has no cells"),
    "R": (document(metadata=R), "it is a notebook of R, and only Python is searched"),
    "Julia": (document(metadata={"language_info": {"name": "julia"}}), "it is a notebook of julia"),
    "no source": (document({"cell_type": "code"}), "cell 1 has no source of strings"),
    "numbers": (document(markdown("x"), code([1])), "cell 2 has no source of strings"),  # type: ignore[list-item]
    "deep": (b'{"cells": [' + b"[" * 100_000 + b"]" * 100_000 + b"]}", "'{' in line 1"),
    "deep output": (b'{"cells": [], "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "parts": (b"[" * (MOST_PARTS + 1), "lists and objects, and at most 5,000,000 are read"),
    "much code": (document(code("#" * (LARGEST + 1))), "its code cells have more than 1,048,576 characters"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_notebook_of_python_is_named(name: str, tmp_path: Path) -> None:
    data, why = BAD[name]
    with pytest.raises(Unreadable, match=re.escape(why)):
        read_notebook(data)
    (tmp_path / "a.ipynb").write_bytes(data)
    assert isinstance(search_file(tmp_path / "a.ipynb"), NotRead)


def test_a_notebook_that_is_too_large_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    path.touch()
    os.truncate(path, LARGEST_NOTEBOOK + 1)
    found = search_file(path)
    assert isinstance(found, NotRead)
    assert found.reason == "it has 134.2 MB, and only files of at most 134 MB are read"


def test_outputs_of_any_json_that_jupyter_reads_stay(tmp_path: Path) -> None:
    data = document(
        code(IMPORTS), code(ATTENTION, outputs=[{"data": {"a": 1e999, "b": [1.50, None]}, "x": "\ud83d"}])
    )
    data = data.replace(b"Infinity", b"NaN").replace(b"1.5,", b"1.50E+0,")
    found = places(data, tmp_path)
    new = FileReport.of(found).encoded(FileReport.of(found).rewritten)
    at = data.index(b"class Head")
    assert new[:at] == data[:at]
    assert new != data


# Edits


def styled(text: str, style: str) -> str | list[str]:
    if style == "string":
        return text
    lines = text.splitlines(keepends=True)
    if style == "pairs":
        return ["".join(lines[at : at + 2]) for at in range(0, len(lines), 2)]
    return lines if style == "lines" else [text[at : at + 5] for at in range(0, len(text), 5)]


STATEMENTS = (
    "x = 1",
    "# é 🎉 \\u00e9",
    's = "a\\tb\\\\n"  # "quoted"',
    "t = 'ÿ🎉'",
    "y = [\n  1,\n]",
    "",
    "if x:\n    # deep\n    z = 2",
    '"""\n%text\n"""',
    "%matplotlib inline",
    "!ls -l 'é",
    "z = !ls",
)
NEW = ("new = 1", '# neu: ü 🎉 "\\', "for i in x:\n    pass", "s = '\\n'")
PYTHON = st.lists(st.sampled_from(STATEMENTS), min_size=1, max_size=8).map("\n".join)
OTHER = st.sampled_from(["%%bash\nls é", "print 'x'", "", "\n"])
TEXT = st.sampled_from(["# é\n%x", "", "🎉"])
STYLES = st.sampled_from(["lines", "string", "pairs", "bits"])


@st.composite
def written(draw: st.DrawFn) -> bytes:
    """A notebook in any style that a program may write."""
    kinds = {"code": st.one_of(PYTHON, OTHER), "markdown": TEXT, "raw": TEXT}
    cells = [
        {
            "outputs": [{"text": ["é\n", "a"]}],
            "source": styled(draw(kinds[kind]), draw(STYLES)),
            "cell_type": kind,
            "metadata": {"é": 1},
        }
        for kind in draw(
            st.lists(st.sampled_from(["code", "code", "markdown", "raw"]), min_size=1, max_size=6)
        )
    ]
    whole = {"nbformat_minor": 5, "cells": cells, "metadata": {"z": "🎉", "a": {}}, "nbformat": 4}
    indent = draw(st.sampled_from([None, 0, 1, 2, "\t"]))
    text = json.dumps(whole, indent=indent, ensure_ascii=draw(st.booleans()))
    return (text + draw(st.sampled_from(["", "\n", "\r\n"]))).encode()


def sources(data: bytes) -> list[str]:
    """The JSON text of each cell's source."""
    text = data.decode()
    decode = json.JSONDecoder().raw_decode
    starts = [found.end() for found in re.finditer(r'"source":\s*', text)]
    return [text[start : decode(text, start)[1]] for start in starts]


def lines_of(value: str) -> list[str]:
    """The lines of a source as JSON has them, in how many strings soever."""
    joined = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', value))
    return [
        line.removesuffix("\\n") for line in re.findall(r"(?:[^\\]|\\[^n])*\\n|(?:[^\\]|\\[^n])+", joined)
    ]


def is_by_line(lines: list[str]) -> bool:
    return all(line.find("\n") == len(line) - 1 for line in lines[:-1]) and "\n" not in lines[-1][:-1]


@given(written(), st.data())
def test_an_edit_leaves_every_other_byte_as_it_was(data: bytes, draw: st.DataObject) -> None:
    notebook = read_notebook(data)
    lines = notebook.source.splitlines(keepends=True)
    cells = [notebook.place(line)[0] for line in range(1, len(lines) + 1)]
    free = [index for index, line in enumerate(lines) if re.match(r"[stx#] ", line)]
    edits: list[Edit] = []
    touched: set[tuple[int, int]] = set()
    for index in draw.draw(st.sets(st.sampled_from(free), max_size=4)) if free else ():
        start = sum(map(len, lines[:index]))
        end = start + len(lines[index])
        number, line = notebook.place(index + 1)
        touched.add((number, line))
        new = f"{draw.draw(st.sampled_from(NEW))}\n"
        how = draw.draw(st.sampled_from(["replace", "insert", "append", "remove"]))
        if how == "insert" and line > 1:  # before the first line, it would belong to the cell above
            edits.append(Edit(start, start, new))
        elif how == "append":
            edits.append(Edit(end - 1, end - 1, "  # ü"))
        elif how == "remove" and cells.count(number) > 1 and [each for each, _ in touched].count(number) == 1:
            edits.append(Edit(start, end, ""))
        else:
            edits.append(Edit(start, end, new))
    changed = notebook.encoded(data, edits)
    assert read_notebook(changed).source == edited(notebook.source, edits)
    assert read_notebook(changed).left_out == notebook.left_out
    rest, other = data.decode(), changed.decode()
    for number, (before, after) in enumerate(zip(sources(data), sources(changed), strict=True), start=1):
        between, _, rest = rest.partition(before)
        assert other.startswith(between + after)
        other = other[len(between + after) :]
        gone = {line for each, line in touched if each == number}
        if not gone:
            assert before == after
            continue
        kept = [line for at, line in enumerate(lines_of(before), start=1) if at not in gone]
        remaining = iter(lines_of(after))
        assert all(line in remaining for line in kept)
        if before.startswith("[") and is_by_line(json.loads(before)):
            assert is_by_line(json.loads(after))
    assert rest == other


def test_lines_of_an_array_keep_its_indentation_and_its_escapes() -> None:
    value = '[\n   "x = 1\\n",\n   "# \\u00e9\\n",\n   "y = 2  # \\u00e9"\n  ]'
    data = document(code("HERE")).replace(b'"HERE"', value.encode())
    notebook = read_notebook(data)
    end = len(notebook.source)
    new = notebook.encoded(data, [Edit(0, 6, "x = 1\n# ü\n"), Edit(end, end, "import a\n")])
    assert sources(new) == [
        '[\n   "x = 1\\n",\n   "# \\u00fc\\n",\n   "# \\u00e9\\n",'
        '\n   "y = 2  # \\u00e9\\n",\n   "import a"\n  ]'
    ]
    new = notebook.encoded(data, [Edit(end - 11, end, "")])
    assert sources(new) == ['[\n   "x = 1\\n",\n   "# \\u00e9"\n  ]']


@pytest.mark.parametrize(
    ("start", "end"), [(0, 6), (2, 8), (6, 20), (6, 19), (10, 10), (20, 30)], ids=str
)  # fmt: skip
def test_no_edit_reaches_a_magic_or_another_cell(start: int, end: int) -> None:
    notebook = python("x = 1\n%ls\ny = 2", "z = 3\nw = 4")
    assert notebook.source == "x = 1\nget_ipython()\ny = 2\nz = 3\nw = 4\n"
    edits = [Edit(start, end, "new = 1\n")]
    if (start, end) == (0, 6):
        assert len(notebook.changed(edits)) == 1
    else:
        with pytest.raises(NotEditable):
            notebook.changed(edits)


def test_no_edit_comes_before_the_magic_of_a_cell() -> None:
    with pytest.raises(NotEditable):
        python("%%time\nx = 1").changed([Edit(0, 0, "import torch\n")])


def test_a_result_that_reads_otherwise_is_not_written() -> None:
    data = document(code("x = 1"))
    with pytest.raises(UsageError, match="read differently"):
        read_notebook(data).encoded(data, [Edit(0, 5, "x = (")])


# The search


def test_cells_see_what_those_above_define(tmp_path: Path) -> None:
    found = places(document(code(IMPORTS), markdown("## A head"), code("%%time\n" + ATTENTION)), tmp_path)
    (site,) = found.sites
    assert site.verdict == "rewritten"
    assert (site.cell, site.line, site.end_line) == (3, 4, 6)
    assert places(document(code(ATTENTION)), tmp_path).sites[0].verdict == "refused"


def test_a_definition_in_two_cells_has_no_known_meaning(tmp_path: Path) -> None:
    again = code("from jax.nn import softmax\nimport jax.nn as F")
    (site,) = places(document(code(IMPORTS), code(ATTENTION), again), tmp_path).sites
    assert site.verdict == "refused"


def test_a_magic_between_the_lines_is_a_reason(tmp_path: Path) -> None:
    cell = ATTENTION.replace("        att = F", "        %time x = 1\n        att = F")
    (site,) = places(document(code(IMPORTS), code(cell)), tmp_path).sites
    assert site.verdict == "refused"
    assert "line" in site.reason


def test_reasons_name_cells(tmp_path: Path) -> None:
    cell = "# two\n" + ATTENTION.replace("return att @ v", "y = att @ v\n        return y, att")
    (site,) = places(document(code(IMPORTS), code(cell)), tmp_path).sites
    assert "in cell 2, line 7" in site.reason
    penalty = "def penalty(x, y):\n    return torch.autograd.grad(y, x, create_graph=True)"
    places(document(code(IMPORTS), code(ATTENTION), code(penalty)), tmp_path)
    (found,) = search([tmp_path / "a.ipynb"])
    assert isinstance(found, Searched)
    (assumed,) = found.sites[0].assumptions
    assert "a.ipynb, cell 3, line 2 (create_graph=True)" in assumed


def test_an_import_goes_behind_what_installs_it(tmp_path: Path) -> None:
    cell = ATTENTION.replace("F.softmax(att, dim=-1)", "att.softmax(-1)").replace("nn.Module", "Module")
    cell = cell.replace("math.sqrt(k.size(-1))", "k.size(-1) ** 0.5")
    data = document(
        code(["%%capture\n", "!pip install torch"]), code("from torch.nn import Module"), code(cell)
    )
    report = FileReport.of(places(data, tmp_path))
    new = json.loads(report.encoded(report.rewritten))
    assert new["cells"][0]["source"] == ["%%capture\n", "!pip install torch"]
    assert new["cells"][1]["source"] == "from torch.nn import Module\nimport torch.nn.functional as F"
    assert "F.scaled_dot_product_attention(" in new["cells"][2]["source"]
    patch = report.patch(report.rewritten)
    assert re.findall("^(?:---|\\+\\+\\+|@@).*", patch, re.MULTILINE)[2:] == [
        "@@ -1 +1,2 @@ cell 2",
        "@@ -1,5 +1,3 @@ cell 3",
    ]


def test_second_derivatives_are_followed_from_a_notebook(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "losses.py").write_text(
        "import torch\ndef smooth(x, y):\n    return torch.autograd.grad(y, x, create_graph=True)\n",
        encoding="utf-8",
    )
    (tmp_path / "heads.py").write_text(f"{IMPORTS}\n{ATTENTION}", encoding="utf-8")
    call = "%ls\nfrom losses import smooth\nsmooth(x, y)"
    cells = (code(IMPORTS), code(ATTENTION), code("from heads import Head as Other"))
    (tmp_path / "a.ipynb").write_bytes(document(*cells))
    (before,) = [each for each in search([tmp_path / "a.ipynb"]) if isinstance(each, Searched)]
    assert [site.verdict for site in before.sites] == ["rewritten"]
    output = {"output_type": "stream", "name": "stdout", "text": "x" * LARGEST}
    (tmp_path / "a.ipynb").write_bytes(document(*cells, code(call, outputs=[output])))
    found = [each for each in search([tmp_path]) if isinstance(each, Searched)]
    assumed = [site.assumptions for each in found for site in each.sites]
    assert len(assumed) == 2
    assert all("line 3 (create_graph=True), called from" in each for (each,) in assumed)
    flag = code("def f(x, y, deep):\n    return torch.autograd.grad(y, x, create_graph=deep)")
    (tmp_path / "a.ipynb").write_bytes(document(*cells, flag))
    (maybe,) = [each for each in search([tmp_path / "a.ipynb"]) if isinstance(each, Searched)]
    assert "a.ipynb, cell 4, line 2 (create_graph=deep)" in maybe.sites[0].assumptions[-1]


def test_a_notebook_that_has_changed_is_not_written(tmp_path: Path) -> None:
    report = FileReport.of(places(document(code(IMPORTS), code(ATTENTION)), tmp_path))
    changed = report.found.data + b"\n"
    report.path.write_bytes(changed)
    with pytest.raises(UsageError, match="it has changed since"):
        write(report.found, report.encoded(report.rewritten))
    assert report.path.read_bytes() == changed


LINES = "weights = torch.softmax(q @ k.transpose(-2, -1), dim=-1)\n"
OWN = "q, k, v = (torch.randn(2, 4, 8, 16) for _ in range(3))"


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ((OWN, f"{LINES}out = weights @ v"), ""),
        ((OWN, LINES, "out = weights @ v"), "its lines lie in several cells"),
        (
            (OWN, f"{LINES}out = weights @ v", "%timeit weights.sum()"),
            "a magic or a cell that is no Python may read its names",
        ),
        (
            (OWN, f"{LINES}out = weights @ v", "%%bash\necho"),
            "a magic or a cell that is no Python may read its names",
        ),
        ((OWN, f"{LINES}out = weights @ v", "%timeit other.sum()"), ""),
        (
            (OWN, f"{LINES}out = weights @ v", "weights"),
            "`weights` would be removed, but is read in cell 4, line 1",
        ),
    ],
)
def test_lines_outside_of_functions_are_those_of_one_cell(
    cells: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "lesson.ipynb"
    path.write_bytes(document(*map(code, (IMPORTS, *cells))))
    found = search_file(path)
    assert isinstance(found, Searched)
    (site,) = found.sites
    assert site.symbol == "<module>"
    assert (site.verdict, site.reason if reason else "") == ("refused" if reason else "rewritten", reason)
