"""A text prepared in one pass is the text, whatever interrupts it; bad input is refused."""

import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashmore.data import prepared as module
from flashmore.data.items import read_words
from flashmore.data.long_text import LongText, PartRanges, read_long_text
from flashmore.data.prepared import Encoder, Mode, Prepared, beside, prepare, read_prepared
from flashmore.data.text import START, read_pieces, read_text
from flashmore.errors import ConfigError, DataError, RunError, StorageError
from forks import Forks

TEXT = "the cat sat on the mat.\r\nthe Žižek café 日本 …\n" * 40
ENCODINGS = (
    "utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-7", "latin-1", "shift_jis", "iso2022_jp",
    "iso2022_kr", "hz", "gb18030", "big5hkscs", "euc_jis_2004", "cp1258",
)  # fmt: skip
PARTS = PartRanges((0, 9), (9, 9), (9, 9))
JOINING = "ae\u0301\u0323\u1100\u1161\u11a8가か\u3099\ufeff\r\n \u03b1Å日~x"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8", newline="")
    return path


def made(source: Path, out: Path, mode: Mode = "text") -> str:
    """Prepare a text; the characters that its ids stand for."""
    prepared = prepare(source, out, "utf-8", mode, lambda done, total: None)
    assert read_prepared(out) == prepared
    ids = np.fromfile(out, "<u2")
    assert len(ids) == prepared.count
    return "".join(prepared.characters[number] for number in ids)


def refused(kind: type[Exception], source: Path, out: Path, found: str) -> None:
    with pytest.raises(kind) as caught:
        made(source, out)
    assert found in getattr(caught.value, "found", "")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    text=st.text(st.sampled_from(JOINING) | st.characters(min_codepoint=32, exclude_categories=["Cs"])),
    piece_bytes=st.integers(1, 9),
    encoding=st.sampled_from(ENCODINGS),
)
def test_reading_goes_on_after_any_piece_in_any_encoding(
    tmp_path: Path, text: str, piece_bytes: int, encoding: str
) -> None:
    path = tmp_path / "text.txt"
    data = text.encode(encoding, "ignore")
    try:
        path.write_bytes(data)
        whole = "".join(read_text(path, encoding))
    except DataError:  # empty, or of control characters
        return
    read, encoder, ids = "", Encoder("", "text"), list[int]()
    for piece, place in read_pieces(path, encoding, START, piece_bytes):
        read += piece
        ids += encoder.encode(piece).tolist()
        kept = msgspec.json.decode(msgspec.json.encode(place), type=type(place))
        assert read + "".join(rest for rest, _ in read_pieces(path, encoding, kept, piece_bytes)) == whole
    assert "".join(encoder.characters[number] for number in ids) == whole
    assert list(dict.fromkeys(whole)) == list(encoder.characters)


def test_a_prepared_text_is_the_text(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "text.bin"
    assert made(source, out) == "".join(read_text(source))
    assert names(out.parent) == ["text.bin", "text.bin.json"]
    before = out.stat().st_mtime_ns
    made(source, out)
    assert out.stat().st_mtime_ns == before, "repeating the command does nothing"
    of_text, vocabulary, size = read_long_text(source, "utf-8", "80/10/10", 16, None)
    text, same, same_size = read_long_text(out, "utf-8", "80/10/10", 16, None)
    assert (same, same_size, text.parts) == (vocabulary, size, of_text.parts)
    folder = tmp_path / "run"
    folder.mkdir()
    ranks = text.remap
    assert ranks is not None
    stored = of_text.stored(folder, vocabulary).ids(folder, vocabulary)
    np.testing.assert_array_equal(ranks[text.ids(folder, same)], stored)


PROGRAM = """
import sys
from flashmore.data import prepared
prepared.SAVED_IDS = 4000
prepared.PIECE_BYTES = 512
from flashmore.data.text import read_pieces
read_pieces.__defaults__ = (512,)
from flashmore.cli.main import main
sys.exit(main(["prepare", *sys.argv[1:]]))
"""


def killed_and_continued(folder: Path, forks: Forks, kills: int, mode: Mode) -> None:
    source, out, program = folder / "long.txt", folder / "long.bin", folder / "program.py"
    chance = random.Random(kills)
    lines = ("".join(chance.choices("abcde éü日\u0301\r\n", k=70)) for _ in range(5_000 * kills))
    source.write_text("".join(lines), encoding="utf-8", newline="")
    program.write_text(PROGRAM, encoding="utf-8")
    state = out.with_name("long.bin.part") / "state.json"
    reached = [0]
    with Path(os.devnull).open("r+") as nothing:
        for _ in range(kills):
            words = (program, source, "--out", out, "--mode", mode)
            process = forks.start(words, {**os.environ}, (nothing.fileno(),) * 3)
            while not process.ended(0) and (not state.exists() or count_of(state) <= reached[-1]):
                time.sleep(0.002)
            process.ended(chance.uniform(0, 0.05))
            if process.returncode is not None:
                break
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            if not state.exists():  # it was done, but for the end of the process
                break
            reached.append(count_of(state))
    assert reached == sorted(set(reached)), "each process goes on where the one before it was"
    assert len(reached) > 1
    whole = (
        "".join(read_text(source)) if mode == "text" else "".join(f"{x}\n" for x in read_words(source).lines)
    )
    assert made(source, out, mode) == whole
    assert names(folder) == ["long.bin", "long.bin.json", "long.txt", "program.py"]


def count_of(state: Path) -> int:
    return int(json.loads(state.read_bytes())["count"])


@pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")
@pytest.mark.parametrize("mode", ["text", "items"])
def test_a_killed_preparation_goes_on(tmp_path: Path, forks: Forks, mode: Mode) -> None:
    killed_and_continued(tmp_path, forks, 2, mode)


@pytest.mark.faults
@pytest.mark.parametrize("mode", ["text", "items"])
def test_a_preparation_killed_many_times_goes_on(tmp_path: Path, forks: Forks, mode: Mode) -> None:
    killed_and_continued(tmp_path, forks, 60, mode)


@pytest.fixture
def unfinished(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is left of a preparation of the text that stopped half way."""

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    monkeypatch.setattr(module, "SAVED_IDS", 100)
    monkeypatch.setattr(module, "_AHEAD", 2)
    monkeypatch.setattr(read_pieces, "__defaults__", (64,))
    with pytest.raises(Stop):
        prepare(source, tmp_path / "text.bin", "utf-8", "text", stop)
    folder = tmp_path / "text.bin.part"
    assert names(folder) == ["ids.bin", "lock", "state.json"]
    return folder


def test_an_unfinished_preparation_goes_on(unfinished: Path, source: Path, tmp_path: Path) -> None:
    places: list[int] = []
    prepare(source, tmp_path / "text.bin", "utf-8", "text", lambda done, total: places.append(done))
    assert places[0] > 64, "it does not begin anew"
    assert made(source, tmp_path / "text.bin") == "".join(read_text(source))


def test_a_preparation_killed_between_its_last_steps_is_finished(
    unfinished: Path, source: Path, tmp_path: Path
) -> None:
    out, kept = tmp_path / "text.bin", {path: path.read_bytes() for path in unfinished.iterdir()}
    right = made(source, out)
    for left in ((beside(out),), (beside(out), out)):
        found = {path: path.read_bytes() for path in left}
        beside(out).unlink()
        out.unlink()
        unfinished.mkdir()
        for path, data in (kept | found).items():
            path.write_bytes(data)
        assert made(source, out) == right
        assert names(tmp_path) == ["text.bin", "text.bin.json", "text.txt"]


def test_a_text_too_short_for_a_saved_state_is_prepared_again_after_its_description(
    source: Path, tmp_path: Path
) -> None:
    out, part = tmp_path / "text.bin", tmp_path / "text.bin.part"
    right = made(source, out)
    other = tmp_path / "other.txt"
    other.write_text("another text", encoding="utf-8")
    part.mkdir()
    out.rename(part / "ids.bin")
    refused(ConfigError, other, out, "text.bin.json exists")
    assert made(source, out) == right
    assert names(tmp_path) == ["other.txt", "text.bin", "text.bin.json", "text.txt"]


def test_what_cannot_be_continued_is_told(unfinished: Path, source: Path, tmp_path: Path) -> None:
    out, status = tmp_path / "text.bin", source.stat()
    ids, state = unfinished / "ids.bin", unfinished / "state.json"
    content = msgspec.json.decode(state.read_bytes(), type=module._State)
    right = {path: path.read_bytes() for path in (ids, state)}

    def write(state_of_it: module._State) -> None:
        state.write_bytes(module._sealed(state_of_it))

    for damage, found in (
        (lambda: ids.write_bytes(right[ids][:10]), "other bytes than it wrote"),
        (lambda: ids.write_bytes(b"xx" + right[ids][2:]), "other bytes than it wrote"),
        (lambda: state.write_bytes(right[state][:-9]), "truncated or altered"),
        (lambda: state.write_bytes(right[state].replace(b'"count": ', b'"count": 1')), "its checksum"),
        (lambda: state.write_bytes(b"[" * 10**6), "truncated or altered"),
        (lambda: write(replace_place(content, undecoded="x")), "no place"),
        (lambda: write(replace_place(content, state="9" * 4000)), "no place"),
        (lambda: write(replace_place(content, offset=-1)), "no place"),
        (lambda: (unfinished / "notes.txt").touch(), "notes.txt"),
    ):
        damage()
        refused(DataError if found == "no place" else RunError, source, out, found)
        assert unfinished.exists() == (found != "no place"), "it is left for the user to remove"
        (unfinished / "notes.txt").unlink(missing_ok=True)
        for path, data in right.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
    os.utime(source, ns=(status.st_mtime_ns, status.st_mtime_ns + 10**9))
    refused(RunError, source, out, "and it changed since")
    with FileLock(unfinished / "lock"):
        refused(ConfigError, source, out, "another process")
    assert not out.exists()


def replace_place(unfinished: module._State, **changes: object) -> module._State:
    return msgspec.structs.replace(unfinished, place=replace(unfinished.place, **changes))  # type: ignore[arg-type]


def test_what_is_there_already_is_kept(source: Path, tmp_path: Path) -> None:
    for name in ("text.bin", "text.bin.json"):
        (tmp_path / name).write_bytes(b"of the user")
        with pytest.raises((ConfigError, DataError)):
            made(source, tmp_path / "text.bin")
        assert names(tmp_path) == sorted(("text.txt", name))
        assert (tmp_path / name).read_bytes() == b"of the user"
        (tmp_path / name).unlink()
    made(source, tmp_path / "text.bin")
    other = tmp_path / "other.txt"
    other.write_text("another text", encoding="utf-8")
    refused(ConfigError, other, tmp_path / "text.bin", "text.bin exists")


def test_a_text_that_is_none_leaves_nothing(source: Path, tmp_path: Path) -> None:
    for data, found in (
        (b"good\n\xff", "line 2: byte 0xff"),
        (b"", "an empty file"),
        ("".join(map(chr, range(0x30000, 0x30000 + 65_537))).encode(), "65,537"),
    ):
        source.write_bytes(data)
        refused(DataError, source, tmp_path / "text.bin", found)
        assert names(tmp_path) == ["text.txt"]
    source.write_text("".join(map(chr, range(0x30000, 0x30000 + 65_536))), encoding="utf-8")
    assert made(source, tmp_path / "text.bin") == source.read_text(encoding="utf-8")


def test_a_text_that_changes_while_it_is_read_is_refused(source: Path, tmp_path: Path) -> None:
    def change(done: int, total: int) -> None:
        os.utime(source, ns=(1, 1))

    with pytest.raises(DataError, match="changed while it was read"):
        prepare(source, tmp_path / "text.bin", "utf-8", "text", change)
    assert names(tmp_path) == ["text.txt"]


FULL_DISK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
""" + PROGRAM.replace("4000", "300")


@pytest.mark.skipif(os.name != "posix", reason="needs limits of a process")
def test_a_full_disk_is_told_and_the_same_command_goes_on(source: Path, tmp_path: Path, forks: Forks) -> None:
    program = tmp_path / "program.py"
    program.write_text(FULL_DISK, encoding="utf-8")
    done = forks.run((program, source, "--mode", "text", "--out", tmp_path / "text.bin"), {**os.environ})
    assert done.returncode == 1
    assert "valid: more free space" in done.stderr
    assert count_of(tmp_path / "text.bin.part" / "state.json") > 0
    assert made(source, tmp_path / "text.bin") == "".join(read_text(source))


def changed(prepared: Prepared, **changes: object) -> bytes:
    return module._sealed(msgspec.structs.replace(prepared, **changes))


def test_a_damaged_or_crafted_description_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "text.bin"
    prepared = prepare(source, out, "utf-8", "text", lambda done, total: None)
    right = beside(out).read_bytes()
    for data, found in (
        (right[:-3], "truncated or altered"),
        (right.replace(b'"count": ', b'"count": 1'), "its checksum"),
        (b"", "truncated or altered"),
        (b"{" * 10**6, "truncated or altered"),
        (b'{"a":' * 10**5, "truncated or altered"),
        (b"\xff", "truncated or altered"),
        (changed(prepared, format=2), "format 2"),
        (changed(prepared, characters=prepared.characters + "t"), "no vocabulary"),
        (changed(prepared, characters=""), "no vocabulary"),
        (changed(prepared, characters="\x1b"), "no vocabulary"),
        (changed(prepared, count=5), "a file of"),
        (changed(prepared, count=-1), "a file of"),
        (changed(prepared, count=10**30), "a file of"),
    ):
        beside(out).write_bytes(data)
        with pytest.raises(DataError) as caught:
            read_prepared(out)
        assert found in caught.value.found
    beside(out).unlink()
    assert read_prepared(out) is None
    assert read_long_text(out, "utf-8", "80/10/10", 16, None)[0].kind == "tokens"
    beside(out).symlink_to("/dev/zero")
    with pytest.raises(DataError, match="a device"):
        read_prepared(out)


def test_damaged_ids_are_found_when_they_are_opened(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "text.bin"
    prepare(source, out, "utf-8", "text", lambda done, total: None)
    text, vocabulary, _ = read_long_text(out, "utf-8", "80/10/10", 16, None)
    folder = tmp_path / "run"
    folder.mkdir()
    data = bytearray(out.read_bytes())
    data[2] ^= 1
    out.write_bytes(data)
    with pytest.raises(DataError, match="the original file"):
        text.ids(folder, vocabulary)


@pytest.mark.parametrize("order", ["", "aab", "abcd"])
def test_the_order_of_a_run_has_each_character_once(order: str) -> None:
    with pytest.raises(ValueError, match="in the order of"):
        LongText("characters", "/text.bin", "utf-8", 9, 2, "0", PARTS, order=order)
    with pytest.raises(ValueError, match="in the order of"):
        LongText("tokens", "/text.bin", "utf-8", 9, 2, "0", PARTS, order="abc")


def test_an_output_that_cannot_be_written_is_told(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(StorageError, source, tmp_path / "file" / "text.bin", "Not a directory")
