"""Nothing that other people wrote reaches a terminal unescaped, whatever the command."""

import json
import os
import re
import subprocess
import unicodedata
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from urllib.parse import quote

import pytest

from flashmore.cli.main import VERBS
from forks import Forks

Process = Callable[..., CompletedProcess[str]]
Terminal = Callable[..., tuple[int, str]]

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\u202e\u2066\u2028\U000e0041"
"""Sets a title, clears the screen, colours by a C1 code, deletes, turns the line round, hides a letter."""
FORMATS = ("concise", "json", "github", "sarif")
LINE = "\n valid: rm -rf ~"
RICH = re.compile(r"\r(?=\x1b\[2K|\x1b\[1A)|\x1b\[[\d;?]*[A-Za-z]")
"""The control codes that rich writes on a terminal, and those of coloured diffs."""
ATTENTION = """\
import torch
def attend(q, k, v):
    # {evil}
    att = q @ k.transpose(-2, -1) * 8 ** -0.5
    att = torch.softmax(att, dim=-1)  # {evil}
    return att @ v
def refused(q, k, v, extra="{evil}"):
    att = torch.softmax(q @ k.transpose(-2, -1) / extra["{evil}"], dim=-1)
    return att @ v, att
"""


def harmless(text: str) -> bool:
    kinds = {character: unicodedata.category(character) for character in set(text)}
    return not any(kind in ("Cc", "Cf", "Zl", "Zp", "Cs") for c, kind in kinds.items() if c not in "\n\t")


def check(done: CompletedProcess[str], *codes: int) -> None:
    assert done.returncode in codes, done.stderr
    assert harmless(done.stdout), ascii(done.stdout)
    assert harmless(done.stderr), ascii(done.stderr)
    for line in (done.stdout + done.stderr).split("\n"):
        assert not line.startswith(" valid: rm"), "a file's name began a line of its own"
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files whose names, comments, strings and mistakes are hostile."""
    folder = tmp_path_factory.mktemp("sources")
    code = ATTENTION.format(evil=EVIL.replace("\u2028", ""))
    (folder / f"a{EVIL}{LINE.replace('/', '')}.py").write_text(code, encoding="utf-8")
    (folder / "crlf.py").write_bytes(code.replace("\n", "\r\n").encode())
    (folder / "escape.py").write_text(code + '\ntext = "\\\x1b[31m \\\u202e"\n', encoding="utf-8")
    (folder / f"broken{EVIL}.py").write_text(f"def f(:\n    {EVIL}\n", encoding="utf-8")
    (folder / "encoding.py").write_bytes(f"# coding: latin{EVIL}\n".encode())
    (folder / "identifier.py").write_text(f"na{EVIL}me = 1\n", encoding="utf-8")
    Path(os.fsdecode(os.fsencode(folder) + b"/bytes\xff\x9b31m.py")).write_text(code, encoding="utf-8")
    (folder / f"link{EVIL}.py").symlink_to(folder / f"nowhere{EVIL}")
    return folder


@pytest.mark.parametrize("options", ["", "--write", *(f"--output-format {name}" for name in FORMATS)])
def test_upgrade_escapes_what_hostile_sources_hold(
    call: Process, sources: Path, tmp_path: Path, options: str
) -> None:
    folder = tmp_path / f"project{EVIL}"
    subprocess.run(["cp", "-a", str(sources), str(folder)], check=True)
    done = call("upgrade", folder, *options.split())
    check(done, 0, 1)
    assert "owned" in done.stdout, "the hostile text is shown, escaped"
    if "json" in options:
        sites = json.loads(done.stdout)["sites"]
        assert any(EVIL in site["path"] for site in sites), "JSON keeps the value itself"
    elif "sarif" in options:
        results = json.loads(done.stdout)["runs"][0]["results"]
        names = [each["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for each in results]
        assert any(quote(EVIL) in name for name in names)
    elif "github" in options:
        assert "\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\x7f\\u202e" in done.stdout
        assert f"{quote(LINE[0])} valid%3A rm -rf ~" in done.stdout
    else:
        assert "\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\x7f\\u202e" in done.stdout
        assert "\\n valid: rm -rf ~" in done.stdout
        assert "bytes\\udcff\\udc9b31m.py" in done.stdout


def test_a_patch_is_exact_in_a_file_and_escaped_on_a_terminal(
    environment: dict[str, str], forks: Forks, on_a_terminal: Terminal, sources: Path, tmp_path: Path
) -> None:
    model, patch = tmp_path / "model.py", tmp_path / "p.patch"
    model.write_text(ATTENTION.format(evil=EVIL.replace("\u2028", "")), encoding="utf-8")
    with patch.open("wb") as out:
        command = ("-m", "flashmore", "upgrade", "model.py", "--diff")
        forks.run(command, environment, tmp_path, stdout=out.fileno())
    assert b"\x1b]0;owned\x07" in patch.read_bytes()
    subprocess.run(["git", "apply", patch], cwd=tmp_path, check=True)
    assert "scaled_dot_product_attention" in model.read_text(encoding="utf-8")
    assert EVIL.replace("\u2028", "") in model.read_text(encoding="utf-8")
    code, printed = on_a_terminal("upgrade", sources, "--diff")
    assert code == 1
    assert harmless(RICH.sub("", printed.replace("\r\r\n", "\r\n").replace("\r\n", "\n"))), ascii(printed)
    assert "\x1b[2J" not in printed
    assert "\\x1b]0;owned\\x07" in printed


@pytest.mark.parametrize("options", [(), ("--test",)])
def test_a_terminal_gets_no_code_but_our_own(
    on_a_terminal: Terminal, sources: Path, options: tuple[str, ...]
) -> None:
    code, printed = on_a_terminal("upgrade", sources, *options)
    assert code == 1
    assert "owned" in printed
    assert harmless(RICH.sub("", printed.replace("\r\r\n", "\r\n").replace("\r\n", "\n"))), ascii(printed)
    assert "\x1b[2J" not in printed


@pytest.fixture(scope="module")
def run(process: Process, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on names of hostile characters, in a folder with a hostile name."""
    folder = tmp_path_factory.mktemp("hostile")
    # Escape itself is refused in data; C1, bidirectional controls and separators are not.
    names = [f"{a}\x9b{b}\u202e{c}\u2066\u200b\xad" for a in "abcdef" for b in "ghij" for c in "klm"]
    file = folder / f"names{EVIL}{LINE.replace('/', '')}.txt"
    file.write_text("\n".join(names), encoding="utf-8")
    run = folder / f"run{EVIL}{LINE.replace('/', '')}"
    done = process(
        "train",
        file,
        "--model",
        "bigram",
        "--max-steps",
        30,
        "--device",
        "cpu",
        "--batch-size",
        8,
        "--out",
        run,
    )
    check(done, 0)
    assert "\\x1b]0;owned" in done.stdout
    assert "\\x1b]0;owned" in done.stderr
    return run


@pytest.mark.parametrize("as_json", [False, True])
def test_a_hostile_vocabulary_and_folder_are_escaped(call: Process, run: Path, as_json: bool) -> None:
    option = ("--json",) if as_json else ()
    name = "a\x9bg\u202ek\u2066\u200b\xad"
    for words in (
        ("generate", run, "--count", 3, "--seed", 1, "--repeats"),
        ("generate", run, "--count", 3, "--seed", 1, "--repeats", "--prefix", "a\x9b"),
        ("score", run, name),
        ("compare", run, run, "--count", 2),
        ("train", "--resume", run),
    ):
        done = call(*words, *option)
        check(done, 0)
        if as_json:
            json.loads(done.stdout)
    shown = call("score", run, name, *option).stdout
    assert name in json.loads(shown)[0]["text"] if as_json else "a\\x9bg\\u202ek\\u2066\\u200b\\xad" in shown


def test_a_terminal_shows_hostile_names_escaped_and_in_their_style(
    on_a_terminal: Terminal, run: Path
) -> None:
    code, printed = on_a_terminal("generate", run, "--count", 6, "--seed", 3, "--repeats")
    assert code == 0
    assert "\x1b[" in printed, "styles survive"
    assert "\\x9b" in printed
    assert harmless(RICH.sub("", printed.replace("\r\r\n", "\r\n").replace("\r\n", "\n"))), ascii(printed)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "words",
    [
        (f"--no-such-option{EVIL}",),
        (f"{EVIL}{LINE}",),
        (f"--device={EVIL}{LINE}",),
        (f"--max-steps={EVIL}", "--help"),
    ],
    ids=["option", "word", "value", "help"],
)
def test_messages_about_words_escape_them(call: Process, verb: str, words: tuple[str, ...]) -> None:
    check(call(verb, *words), 0, 1, 2)


def test_messages_about_paths_escape_them(call: Process, run: Path, tmp_path: Path) -> None:
    gone = tmp_path / f"gone{EVIL}{LINE.replace('/', '')}"
    record = tmp_path / f"record{EVIL}.json"
    record.write_text(json.dumps({"format": EVIL, EVIL: LINE}), encoding="utf-8")
    for words in (
        ("train", gone),
        ("train", "--resume", gone, EVIL),
        ("generate", gone),
        ("score", gone, "a"),
        ("score", run, f"z{EVIL}"),
        ("compare", gone),
        ("report", gone),
        ("report", record),
        ("explain", "--run", gone),
        ("upgrade", gone),
        ("upgrade", tmp_path, "--run", f"{gone} {EVIL}"),
        ("upgrade", tmp_path, "--example", EVIL),
        ("bench", EVIL),
        (EVIL + LINE,),
    ):
        done = call(*words)
        check(done, 2)
        assert "owned" in done.stderr
        assert len(re.findall(r"^ valid: ", done.stderr, re.MULTILINE)) <= 1


def test_a_report_names_hostile_files_escaped(call: Process, tmp_path: Path) -> None:
    record = tmp_path / f"record{EVIL}.json"
    done = call("choose", "--device", "cpu", "--batch-size", 1, "--length", 4, "--out", record)
    check(done, 0)
    page = tmp_path / f"page{EVIL}{LINE.replace('/', '')}.html"
    done = call("report", record, "--out", page)
    check(done, 0)
    assert page.is_file()
