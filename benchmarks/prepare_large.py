"""Prepare a text that is larger than memory, and compare the rate with that of the disk and of the encoder.

    python benchmarks/prepare_large.py --folder /scratch --gigabytes 10
    python benchmarks/prepare_large.py --folder /scratch --items 20000000

Makes a text of this size, prepares it once without and once with a kill -9 on the way, and compares the two
results. The floors: reading the text alone, writing as many bytes as the ids have alone, and decoding and
encoding alone, on one core, without writing. Before each reading the file is dropped from the page cache.
With `--items`, it prepares a list of that many names of random syllables instead, opens it as training does,
and takes batches from it. All files are removed at the end.
"""

import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, Popen, run
from typing import Any

import numpy as np
import tyro

from flashmore.data.long_text import scan_tokens
from flashmore.data.prepared import Encoder, beside, read_prepared
from flashmore.data.text import START, read_pieces

PIECE = 2**26
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
OTHERS = ("café", "naïve", "Žižek", "日本語", "…", "—", "“quoted”", "москва", "ελλάδα")
SHARE_OF_OTHERS = 0.02
SPARE = 1.2
"""Free space that is asked for, of what is needed."""


@dataclass(frozen=True)
class Options:
    """Prepare a large text."""

    folder: Path = Path(tempfile.gettempdir())
    """Where the files are made, in a folder that is removed; they take five times the size of the text."""
    gigabytes: float = 10.0
    """Size of the text."""
    items: int = 0
    """Prepare a list of this many items instead of a text."""
    unicode: bool = False
    """A text in which 2 % of the words are not ASCII, instead of ASCII alone."""
    json: bool = False
    """Print the result to stdout as JSON, and nothing else."""


def pieces(size: int, unicode: bool) -> Iterator[bytes]:
    """Lines of random words in pieces that differ by where they begin."""
    generator = random.Random(0)
    words = ["".join(generator.choices(LETTERS, k=generator.randint(2, 9))) for _ in range(20_000)]
    others = [*OTHERS] * round(SHARE_OF_OTHERS * len(words) / len(OTHERS)) if unicode else []
    words, lines, made = words + others, [], 0
    while made < PIECE:
        line = " ".join(generator.choices(words, k=12)).capitalize() + ".\n"
        lines.append(line.encode())
        made += len(lines[-1])
    while size > 0:
        start = generator.randrange(len(lines))
        data = b"".join(lines[start:] + lines[:start])
        yield data[:size].decode(errors="ignore").encode()
        size -= len(data)


def write(path: Path, parts: Iterator[bytes]) -> float:
    """Seconds until these bytes are on the disk."""
    started = time.perf_counter()
    spent = 0.0
    with path.open("wb", buffering=0) as file:
        for part in parts:
            begun = time.perf_counter()
            file.write(part)
            spent += time.perf_counter() - begun
        begun = time.perf_counter()
        os.fsync(file.fileno())
        spent += time.perf_counter() - begun
    print(f"wrote {path.name}, {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return spent


def drop(path: Path) -> None:
    """Remove a file from the page cache, so that it is read from the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(work: Callable[[], object]) -> float:
    """How long this takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def read(path: Path) -> None:
    """Read a file and do nothing with it."""
    buffer = bytearray(2**18)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def encode(path: Path) -> None:
    """Decode, normalise and encode a text without writing."""
    encoder = Encoder("", str(path))
    for piece, _ in read_pieces(path, "utf-8", START):
        encoder.encode(piece)


def names(count: int) -> Iterator[bytes]:
    """Lines of two to four random syllables each."""
    generator = np.random.default_rng(0)
    syllables = [
        a + b + c for a in ("", *LETTERS[4:], "ch", "sh", "th") for b in "aeiou" for c in ("", *"nrl")
    ]
    while count > 0:
        chosen = generator.integers(len(syllables), size=(min(count, 200_000), 4)).tolist()
        sizes = generator.integers(2, 5, size=len(chosen)).tolist()
        lines = ("".join(syllables[n] for n in row[:size]) for row, size in zip(chosen, sizes, strict=True))
        yield "".join(f"{line}\n" for line in lines).encode()
        count -= len(chosen)


def prepare(text: Path, out: Path, mode: str = "text", kill_at: int | None = None) -> dict[str, Any]:
    """Run `flashmore prepare`; kill it when its unfinished file has this many bytes."""
    started = time.perf_counter()
    words = [sys.executable, "-m", "flashmore", "prepare", str(text), "--mode", mode, "--out", str(out)]
    process = Popen(words, stdout=DEVNULL, stderr=DEVNULL)
    unfinished = out.with_name(out.name + ".part") / "ids.bin"
    ended, peak_kib = 0, 0
    while not ended:
        time.sleep(0.05)
        with suppress(OSError):  # not in `usage`, which starts with what this process used
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
            for kib in re.findall(r"VmHWM:\s+(\d+)", status):  # none of a process that has ended
                peak_kib = max(peak_kib, int(kib))
        if kill_at is not None and unfinished.exists() and unfinished.stat().st_size >= kill_at:
            process.kill()
            kill_at = 2**63
        ended, code, usage = os.wait4(process.pid, os.WNOHANG)
    if os.waitstatus_to_exitcode(code) != (0 if kill_at is None else -9):
        raise SystemExit(f"flashmore prepare ended with {os.waitstatus_to_exitcode(code)}")
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": peak_kib / 1024,
    }


def measure(options: Options, folder: Path) -> dict[str, Any]:
    """Floors, preparations and the check of the result."""
    text, out, other = folder / "text.txt", folder / "text.bin", folder / "again.bin"
    size = round(options.gigabytes * 1e9)
    write(text, pieces(size, options.unicode))
    size = text.stat().st_size
    drop(text)
    floors = {"read": seconds(lambda: read(text))}
    floors["encode"] = seconds(lambda: encode(text))
    drop(text)
    whole = prepare(text, out)
    prepared = read_prepared(out)
    assert prepared is not None
    drop(out)
    check = seconds(lambda: scan_tokens(out))
    ids = out.stat().st_size
    out.unlink()
    beside(out).unlink()
    block = os.urandom(PIECE)
    floors["write"] = write(folder / "written", (block[: ids - at] for at in range(0, ids, PIECE)))
    (folder / "written").unlink()
    drop(text)
    killed = prepare(text, other, kill_at=ids // 2)
    drop(text)
    continued = prepare(text, other)
    again = read_prepared(other)
    assert again is not None
    if again.ids_sha256 != prepared.ids_sha256:
        raise SystemExit("the continued preparation differs from the other one")
    return {
        "bytes": size,
        "unicode": options.unicode,
        "characters": prepared.count,
        "different": len(prepared.characters),
        "floor_seconds": floors,
        "whole": whole,
        "killed_half_way": killed,
        "continued": continued,
        "check_seconds": check,
    }


OPEN = """
import json, re, sys, time
from pathlib import Path
import torch
from flashmore.data.batches import BatchOrder, StoredSequences
from flashmore.data.stored_items import read_stored_items

begun = time.perf_counter()
items = read_stored_items(Path(sys.argv[1]), "80/10/10", 3407)
opened = items.open()
open_seconds = time.perf_counter() - begun
order = BatchOrder(len(opened.train.starts), 128, 0)
begun = time.perf_counter()
order.indices(0)
order_seconds = time.perf_counter() - begun
sequences = StoredSequences(opened.ids, opened.train, items.ranks, opened.longest + 1, "cpu")
begun = time.perf_counter()
for step in range(1000):
    sequences.take(order.indices(step))
batch_ms = time.perf_counter() - begun
peak_mib = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
different = sum(len(part.starts) for part in (opened.train, opened.validation, opened.test))
print(json.dumps({"open_seconds": open_seconds, "order_seconds": order_seconds, "batch_ms": batch_ms,
                  "peak_mib": peak_mib, "different": different}))
"""
"""A process that opens a prepared list and takes 1,000 batches of 128 items from it."""


def measure_list(options: Options, folder: Path) -> dict[str, Any]:
    """Preparing and opening a list."""
    file, out = folder / "names.txt", folder / "names.bin"
    write(file, names(options.items))
    drop(file)
    prepared = prepare(file, out, "items")
    mapped_mib = out.stat().st_size / 2**20
    drop(out)
    opened = json.loads(run([sys.executable, "-c", OPEN, str(out)], check=True, capture_output=True).stdout)
    return {
        "items": options.items,
        "bytes": file.stat().st_size,
        "prepare": prepared,
        "mapped_mib": mapped_mib,
        "open": opened,
    }


def main() -> int:
    """Measure and print."""
    options = tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,))
    needed = SPARE * 5e9 * options.gigabytes
    if shutil.disk_usage(options.folder).free < needed:
        print(f"needs {needed:,.0f} bytes free in {options.folder}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = (measure_list if options.items else measure)(options, Path(folder))
    if options.json or options.items:
        print(json.dumps(found, indent=2))
        return 0
    megabytes = found["bytes"] / 1e6
    for name, taken in found["floor_seconds"].items():
        print(f"{name} alone     {taken:.1f} s, {megabytes / taken:.0f} MB of text per second")
    for name in ("whole", "killed_half_way", "continued"):
        taken = found[name]
        print(f"{name:<15} {taken['seconds']:.1f} s, {taken['cpu_seconds']:.1f} s of CPU time, "
              f"{taken['peak_mib']:.0f} MiB at most")  # fmt: skip
    print(f"{megabytes / found['whole']['seconds']:.0f} MB of text per second in one pass")
    print(f"check of the ids {found['check_seconds']:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
