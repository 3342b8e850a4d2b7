"""What is printed cannot act on a terminal, and text of every script is printed as it is."""

import ast
import io
import json
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from flashmore.cli.show import stdout, table
from flashmore.terminal import one_line, printable, write_as_made, write_json, write_lines

SOURCE = Path(__file__).parents[1] / "src" / "flashmore"
PIPES = {"upgrade/verify/child.py"}
"""Their stdout is a pipe to the process that started them."""
BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
VISIBLE = "\u0600-\u0605 \u06dd \u070f \u0890-\u0891 \u08e2 \U000110bd \U000110cd"
"""Format characters of the category Cf that show: signs around numbers, and an abbreviation mark."""
INVISIBLE = "\u034f \u115f-\u1160 \u17b4-\u17b5 \u180b-\u180f \u2800 \u3164 \uffa0 \U00013430-\U0001345f"
"""Letters, marks and symbols that do not show, or lay out the signs of one script."""
ORDINARY = (
    "naïve café, Straße, ẞ; e\u0301 (combining)",
    "Ελληνικά, Кириллица, Հայերեն, ქართული",
    "עברית, العربية, فارسی: می\u200cخواهم, ه\u200d",
    "हिन्दी: क्\u200dष, क्\u200cष; தமிழ்; ไทย; ភាសា\u200bខ្មែរ; မြန်မာ",
    "日本語、中文、한국어、葛\U000e0100; ｆｕｌｌ　ｗｉｄｔｈ",
    "\u1820\u180e\u1821 Mongolian; \U00013000\U00013430\U00013001 hieroglyphs; \u0600123",
    "\u1820\u180b\u1821\u180f\u180e Mongolian; \u05d0\u05b7\u034f\u05b8 Hebrew; \u2813\u2800\u2811 Braille",
    "\u115f\u1161 \u1100\u1160\u11a8 \u1112\u119e\u11ab Hangul; \U0001bc06\U0001bca0\U0001bc02 Duployan",
    "\U00013000\U00013430\U00013437\U00013001 \U00013000\U00013440 hieroglyphs",
    "❤\ufe0f 👩🏽\u200d💻 👨\u200d👩\u200d👧 🏳\ufe0f\u200d🌈 1\ufe0f\u20e3 🇩🇪",
    "a\tb\nc\r\nd\n",
    r"\x1b C:\new <b>[bold]x[/] :smile: 100 %",
)


JOINERS = "\ufe0f\U000e0100\u200b\u200c\u200d\u2801\U0001bc02\U0001bca0\U00013000"


def in_ranges(ranges: str) -> set[str]:
    found = set()
    for entry in ranges.split():
        first, last = entry[0], entry[-1]
        found |= {chr(code) for code in range(ord(first), ord(last) + 1)}
    return found


def escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


@given(
    pieces=st.lists(st.text(st.characters() | st.sampled_from(JOINERS + "a\r\n\u115f\u1161\x1b"), max_size=5))
)
def test_text_in_pieces_is_escaped_as_a_whole(pieces: list[str]) -> None:
    with redirect_stdout(io.StringIO()) as out:
        write_as_made(pieces)
    assert out.getvalue() == printable("".join(pieces))


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays_as_it_is_character_by_character(text: str) -> None:
    with redirect_stdout(io.StringIO()) as out:
        write_as_made(text)
    assert out.getvalue() == text


def test_pieces_are_flushed_before_the_next_is_asked_for() -> None:
    class Buffer(io.StringIO):
        def flush(self) -> None:
            self.flushed = self.getvalue()

    def pieces() -> Iterator[str]:
        for piece in ("ab", "c", "", "d\x1b"):
            yield piece
            seen.append(out.flushed)

    seen: list[str] = []
    with redirect_stdout(Buffer()) as out:
        write_as_made(pieces())
    assert (seen, out.getvalue()) == (["a", "ab", "ab", "abcd"], "abcd\\x1b")


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_of_every_script_is_printed_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_every_character_of_unicode_that_acts_or_hides_is_escaped_and_no_other() -> None:
    visible, invisible = in_ranges(VISIBLE), in_ranges(INVISIBLE)
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        kind = unicodedata.category(character)
        hidden = kind in ("Cc", "Cs", "Zl", "Zp") or (kind == "Cf" and character not in visible)
        hidden |= character in invisible
        shown = printable(f"a{character}b")
        if character in "\t\n":
            assert shown == f"a{character}b"
        elif hidden:
            assert shown in (f"a{escape(character)}b", f"a{ascii(character)[1:-1]}b"), f"U+{code:04X}"
        elif kind != "Cn":  # what is not assigned yet may be either
            assert shown == f"a{character}b", f"U+{code:04X}"


@pytest.mark.parametrize("character", BIDIRECTIONAL)
def test_bidirectional_controls_are_escaped_in_right_to_left_text_too(character: str) -> None:
    assert printable(f"ع{character}ب") == f"ع\\u{ord(character):04x}ب"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("pay\u200dpal", "pay\\u200dpal"),
        ("\u200c", "\\u200c"),
        ("ب\u200d\u200d", "ب\u200d\\u200d"),
        ("a\ufe00\ufe01\ufe02", "a\ufe00\\ufe01\\ufe02"),
        ("\ufe0f", "\\ufe0f"),
        ("a\r", "a\\r"),
        ("50 %\r100 %", "50 %\\r100 %"),
        ("\u05d0\u034f\u034f", "\u05d0\u034f\\u034f"),
        ("\u1820\u180b\u180b", "\u1820\u180b\\u180b"),
        ("a\u180b\u180e", "a\\u180b\\u180e"),
        ("\ufe0f\u200d", "\\ufe0f\\u200d"),
        ("\u115f\u1160\u3164\ufe0f", "\\u115f\\u1160\\u3164\\ufe0f"),
        ("가\uffa0", "가\\uffa0"),
        ("\u2800", "\\u2800"),
        ("\u1780\u17b4", "\u1780\\u17b4"),
        ("\U0001d15f\U0001d173", "\U0001d15f\\U0001d173"),
        ("\U0001bca0", "\\U0001bca0"),
        ("\U00013000" + "\U00013430" * 3, "\U00013000" + "\U00013430" * 2 + "\\U00013430"),
        ("🏴\U000e0067\U000e007f", "🏴\\U000e0067\\U000e007f"),
    ],
)
def test_joiners_and_selectors_stay_only_where_something_needs_them(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_what_is_escaped_once_stays_as_it_is() -> None:
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    assert printable(printable(every)) == printable(every)


@given(
    st.text(
        st.sampled_from(
            ["a", "\u05d0", "\u1820", "\u1100", "\u1161", *sorted(in_ranges(INVISIBLE)), *JOINERS]
        )
    )
)
def test_of_invisible_characters_in_any_order_what_is_escaped_once_stays(text: str) -> None:
    assert printable(printable(text)) == printable(text)


def test_a_line_feed_in_a_value_begins_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert one_line("model.py\n valid: rm\r\n") == "model.py\\n valid: rm\\r\\n"
    write_lines(["a\nb", "c"])
    stdout().print("run a\nb", "c\x1b[31m")
    assert capsys.readouterr().out == "a\\nb\nc\nrun a\\nb\nc\\x1b[31m\n"


def test_json_has_the_same_value_and_no_hidden_character(capsys: pytest.CaptureFixture[str]) -> None:
    every = "-".join(map(chr, range(sys.maxunicode + 1)))  # two surrogates side by side are one character
    document = {"text": [every, *ORDINARY], "\x9b\u202e": "\udc9b"}
    write_json(document)
    printed = capsys.readouterr().out
    assert json.loads(printed) == document
    assert printable(printed) == printed
    assert "فارسی: می\u200cخواهم" in printed, "ordinary text stays readable"


def test_a_table_is_measured_with_its_escapes_and_keeps_its_styles(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    made = table("na\x1bme", "second")
    made.add_row("a\x1b[2Jb", "x")
    made.add_row("plain", Text("cy\x9ban", "bold cyan"))
    stdout().print(made)
    printed = capsys.readouterr().out
    assert "\x1b[1;36mcy\\x9ban" in printed
    assert "a\\x1b[2Jb" in printed
    assert "na\\x1bme" in printed
    lines = [line for line in printed.split("\n") if "│" in line or "┃" in line]
    bare = [line.replace("\x1b[1;36m", "").replace("\x1b[1m", "").replace("\x1b[0m", "") for line in lines]
    assert len({len(line) for line in bare[:2]}) == 1, "every row is as wide as the first"


def outputs(tree: ast.AST) -> Iterator[str]:
    """Whatever writes to stdout or stderr, or hands one of them on."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "Console", "rich.print"):
            yield ast.unparse(node.func)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("Progress", "Live"):
            if not any(keyword.arg == "console" for keyword in node.keywords):
                yield ast.unparse(node.func)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in (
            "sys.stdout",
            "sys.stderr",
            "sys.__stdout__",
            "sys.__stderr__",
        ):
            if node.attr not in ("isatty", "flush", "fileno", "encoding", "reconfigure"):
                yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and node.module == "sys":
            yield from (alias.name for alias in node.names if alias.name in ("stdout", "stderr"))


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.relative_to(SOURCE).as_posix()
)
def test_one_module_prints(path: Path) -> None:
    name = path.relative_to(SOURCE).as_posix()
    found = list(outputs(ast.parse(path.read_text(encoding="utf-8"))))
    if name == "terminal.py":
        assert found, "the test no longer recognises what writes"
    elif name not in PIPES:
        assert found == []
