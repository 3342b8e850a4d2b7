"""Hostile source files through search, test and writing: nothing runs, hangs, or is written elsewhere."""

import hashlib
import json
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from hostile_source import (
    ATTENTION,
    BESIDE,
    CONTROLS,
    HEAD,
    ODD,
    PLACES,
    SPOKEN,
    STORES,
    executing,
    speaking,
    storing,
)  # fmt: skip

FILE_SECONDS = 10.0
"""Processor time that one file may take."""
START_SECONDS = 1.0
"""Processor time of what does not depend on the files: Python starts, and in several processes."""
TORCH_SECONDS = 5.0
"""Of importing torch, which a test does."""
GIVE_UP_SECONDS = 900
"""By the clock, for a command that waits for something and would never end."""
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
FINE = (HEAD + ATTENTION).encode()
Files = list[tuple[str, bytes]]
SAMPLE = 149
"""Of the files that are made by composition, every so-manieth is tried in the ordinary suite."""


@dataclass(frozen=True)
class World:
    """A folder in which a command sees its whole surroundings: what it changes anywhere in it is found."""

    root: Path
    seconds: list[float] = field(default_factory=list)
    """Processor time that each run took for the files."""

    @property
    def target(self) -> Path:
        """The folder that is searched, and the working directory."""
        return self.root / "target"

    @property
    def canary(self) -> str:
        """A file that comes into being when something hostile runs."""
        return str(self.root / "canary" / "ran")

    def fill(self, files: Iterable[tuple[str, bytes]]) -> None:
        """Write files, and the modules beside them that nobody may import."""
        for name in ("home", "temporary", "canary"):
            (self.root / name).mkdir()
        self.target.mkdir()
        for name in BESIDE:
            (self.target / f"{name}.py").write_text(f"open({self.canary!r}, 'w')\n", encoding="utf-8")
        for name, data in files:
            (self.target / name).write_bytes(data)

    def run(self, *words: str, **changes: str) -> CompletedProcess[str]:
        """Run `flashmore upgrade` there, and check what holds for every run."""
        began = processor_seconds_of_children()
        known = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        done = subprocess.run(
            [sys.executable, "-P", "-m", "flashmore", "upgrade", *words],
            cwd=self.target,
            env=known
            | {
                "HOME": str(self.root / "home"),
                "TMPDIR": str(self.root / "temporary"),
                "PYTHONDONTWRITEBYTECODE": "1",
                "OMP_NUM_THREADS": "1",
            }
            | changes,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            timeout=GIVE_UP_SECONDS,
        )
        start = START_SECONDS + TORCH_SECONDS * bool({"--test", "--write"}.intersection(words))
        self.seconds.append(processor_seconds_of_children() - began - start)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode in (0, 1, 2), done.stderr
        return done

    def inventory(self) -> dict[str, tuple[int, int, str]]:
        """Everything that lies in it: mode, number of links, and contents."""
        return dict(self._entries(self.root))

    def _entries(self, folder: Path) -> Iterator[tuple[str, tuple[int, int, str]]]:
        ahead = sorted(folder.iterdir(), reverse=True)
        while ahead:
            path = ahead.pop()
            info = path.lstat()
            what = ""
            if stat.S_ISREG(info.st_mode):
                what = hashlib.sha256(path.read_bytes()).hexdigest()
            elif stat.S_ISLNK(info.st_mode):
                what = str(path.readlink())
            yield str(path), (info.st_mode, info.st_nlink if not path.is_dir() else 0, what)
            if stat.S_ISDIR(info.st_mode):
                ahead += sorted(path.iterdir(), reverse=True)


def processor_seconds_of_children() -> float:
    """Of processes that have ended, with all that they started and waited for."""
    return sum(os.times()[2:4])


def attack(world: World, files: Files) -> dict[str, list[str]]:
    """Search, then test and write; gives the verdicts of each file."""
    verdicts = attack_together(world, files)
    if max(world.seconds) > FILE_SECONDS:  # as a whole; then none alone may
        for number, file in enumerate(files):
            alone = World(world.root.parent / f"{world.root.name} {number}")
            alone.root.mkdir()
            if len(files) > 1:
                attack_together(alone, [file])
            assert max(alone.seconds or world.seconds) <= FILE_SECONDS, file[0]
    return verdicts


def attack_together(world: World, files: Files) -> dict[str, list[str]]:
    """See `attack`."""
    world.fill(files)
    before = world.inventory()
    count = len(files) + len(BESIDE)
    said = world.run(".").stdout
    assert "searched" in said
    assert world.inventory() == before
    done = world.run(".", "--write", "--json")
    document = json.loads(done.stdout)
    after = world.inventory()
    written = {str(world.target / path) for path in document["written"]}
    assert after.keys() == before.keys()
    assert {path for path in after if after[path] != before[path]} == written
    assert document["searched"] + len(document["not_read"]) == count
    verdicts: dict[str, list[str]] = {}
    for site in document["sites"]:
        verdicts.setdefault(site["path"], []).append("tested" if site["tested"] else site["verdict"])
    return verdicts


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def composed(canary: str) -> Files:
    return [*executing(canary), *storing(), *speaking()]


def test_there_are_enough_files() -> None:
    names = [name for name, _ in composed("x")]
    assert len(names) == len(set(names))
    assert len(names) + len(ODD) >= 300


def test_a_sample_runs_nothing_and_writes_nothing_else(world: World) -> None:
    quick = (
        "nested_max",
        "conditional_views",
        "calls_of_calls",
        "huge_hexadecimal",
        "null_bytes",
        "punycode",
    )
    odd = [(f"{name}.py", ODD[name]) for name in (*quick, "deep_minus", "alias_of_itself", "form_feeds")]
    verdicts = attack(world, [("fine.py", FINE), *composed(world.canary)[::SAMPLE], *odd])
    assert verdicts["fine.py"] == ["tested"]
    assert verdicts["calls_of_calls.py"] == ["refused"]


@pytest.mark.parametrize("write", [False, pytest.param(True, marks=pytest.mark.faults)])
def test_what_is_no_file_is_not_waited_for(write: bool, world: World) -> None:
    outside = world.root / "outside.py"
    world.fill([("fine.py", FINE)])
    outside.write_bytes(FINE)
    folder = world.target
    # The penalty leads through what a file imports, so that imports are followed to all that lies there.
    (folder / "train.py").write_text("import pipe, zero, loop, outlet, folder\nf(create_graph=x)\n")
    os.mkfifo(folder / "pipe.py")
    (folder / "zero.py").symlink_to("/dev/zero")
    (folder / "loop.py").symlink_to("loop.py")
    (folder / "dangling.py").symlink_to("nowhere.py")
    (folder / "round").symlink_to(".")
    (folder / "folder.py").mkdir()
    (folder / "folder.py" / "inside.py").write_bytes(FINE)
    (folder / "unreadable.py").write_bytes(FINE)
    (folder / "unreadable.py").chmod(0)
    (folder / "closed").mkdir(mode=0)
    with suppress(OSError):  # not allowed to everybody
        os.mknod(folder / "device.py", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    server = socket.socket(socket.AF_UNIX)
    old = Path.cwd()
    os.chdir(folder)  # the names of sockets are short
    try:
        server.bind("outlet.py")
    finally:
        os.chdir(old)
        server.close()
    before = world.inventory()
    done = world.run(".", "--json", *(["--write"] if write else []))
    document = json.loads(done.stdout)
    unread = {Path(each["path"]).name for each in document["not_read"]}
    assert {"pipe.py", "zero.py", "loop.py", "dangling.py", "outlet.py"} <= unread
    after = world.inventory()
    changed = {path for path in before if after[path] != before[path]}
    assert changed == {str(folder / path) for path in document["written"]}
    assert after.keys() == before.keys()
    found = document["written"] if write else [site["path"] for site in document["sites"]]
    assert {"fine.py", "folder.py/inside.py"} <= {str(Path(path)) for path in found}
    assert write or not changed
    for name in ("pipe.py", "zero.py"):
        assert world.run(name).returncode == 2


def test_links_and_folders_of_a_cloned_repository_lead_nowhere(world: World) -> None:
    outside = world.root / "outside"
    world.fill([("fine.py", FINE)])
    (outside / "pkg").mkdir(parents=True)
    for name in ("attn.py", "pkg/attn.py"):
        (outside / name).write_bytes(FINE)
    folder = world.target
    for name, target in {"link.py": "../outside/attn.py", "sub": "../outside/pkg", "disk": "/"}.items():
        (folder / name).symlink_to(target)
    for number in range(26):
        (folder / f"d{number}").mkdir()
        for way in "xy":
            (folder / f"d{number}" / way).symlink_to(f"../d{(number + 1) % 26}")
    subprocess.run(["mkdir", "-p", "/".join("n" * 1500)], cwd=folder, check=True)
    try:
        before = world.inventory()
        document = json.loads(world.run(".", "--write", "--json").stdout)
        after = world.inventory()
    finally:  # Python's own way to remove folders calls itself for each
        subprocess.run(["rm", "-r", "n"], cwd=folder, check=True)
    assert document["written"] == ["fine.py"]
    unread = {each["path"] for each in document["not_read"]}
    assert unread == {"link.py", "sub", "disk", "/".join("n" * 101)}
    assert {path for path in before if after[path] != before[path]} == {str(folder / "fine.py")}
    assert after.keys() == before.keys()
    assert max(world.seconds) <= FILE_SECONDS


NAMES = (
    *CONTROLS.values(),
    "a\nb",
    "a\tb",
    "--write",
    "-x",
    " ",
    "a b",
    "$(touch x)",
    "\udcff\udc80",
    "x" * 240,
)


def test_names_of_files_and_what_they_say_are_harmless(world: World) -> None:
    names = [(f"{name.replace('/', '_')}.py", FINE) for name in NAMES]
    world.fill([*names, *list(speaking())[::4]])
    before = world.inventory()
    listen(world, (".", "--test"), (".", "--json"))
    assert world.inventory() == before


def listen(world: World, *commands: tuple[str, ...]) -> None:
    """Every command says something, and no control character."""
    for words in commands:
        done = world.run(*words)
        assert "searched" in done.stdout
        assert not CONTROL.search(done.stdout + done.stderr)


EINOPS = """
import torch
from einops import einsum


def attend(q, k, v):
    s = einsum(q, k, 'b i d, b j d -> b i j')
    return einsum(s.softmax(-1), v, 'b i j, b j d -> b i d')
"""


def test_no_module_beside_is_imported_whatever_pythonpath_is(world: World) -> None:
    world.fill([("lines.py", EINOPS.encode())])
    for name in set(BESIDE) - {"einops", "evil", "safetensors"}:
        (world.target / f"{name}.py").unlink()  # Python itself would import these, before any of our lines
    before = world.inventory()
    done = world.run("lines.py", "--test", "--json", PYTHONPATH=".")
    assert [site["tested"] for site in json.loads(done.stdout)["sites"]] == [True]
    assert world.inventory() == before


def grouped(files: Files) -> dict[str, Files]:
    """By what stands in front of the last underscore."""
    return {key: list(group) for key, group in groupby(files, key=lambda each: each[0].rpartition("_")[0])}


@pytest.mark.faults
@pytest.mark.parametrize("place", PLACES)
def test_payloads_in_every_place(place: str, world: World) -> None:
    files = grouped(list(executing(world.canary)))[place.replace(" ", "_")]
    attack(world, [("fine.py", FINE), *files])


@pytest.mark.faults
@pytest.mark.parametrize("number", range(len(STORES)))
def test_stores_of_every_kind(number: int, world: World) -> None:
    files = [each for each in storing() if each[0].startswith(f"store_{number}_")]
    verdicts = attack(world, [*files, ("the_last.py", FINE)])
    assert verdicts["the_last.py"] == ["tested"]


@pytest.mark.faults
@pytest.mark.parametrize("place", SPOKEN)
def test_control_characters_in_every_place(place: str, world: World) -> None:
    files = grouped(list(speaking()))[place.replace(" ", "_")]
    world.fill(files)
    listen(world, (".",), (".", "--test"), (".", "--json"), (".", "--write"))


@pytest.mark.faults
@pytest.mark.parametrize("name", ODD)
def test_an_oddity(name: str, world: World) -> None:
    attack(world, [(f"{name}.py", ODD[name])])
