"""All measurements on an NVIDIA GPU in one command, each in a process of its own, into one folder.

    python benchmarks/gpu.py --makemore PATH --nanogpt PATH --out FOLDER

Each part writes FOLDER/PART.json and its messages to FOLDER/PART.log; parts.json has what became of every
part, and report.html shows the benchmarks. A part that fails, or has too little memory, is named with the
reason, and the others go on. The same command again runs the parts that have no complete record.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from flashmore.errors import FlashmoreError, Interrupted, StorageError, UsageError
from flashmore.files import disk_errors, replace_file
from flashmore.measuring.result import as_text

HERE = Path(__file__).resolve().parent
FLASHMORE = ("-m", "flashmore")
REPORTED = ("step", "attention", "ablation")
"""The parts whose records `flashmore report` shows."""
SHARE = 0.75
"""Of a part's time, for the measurements of a benchmark that has such an option; the rest is for starting."""
GRACE_SECONDS = 20.0
"""After which a part that does not end at Ctrl-C is killed."""
TINY = "--n-layer 1 --n-head 2 --n-embd 8 --batch-size 4"
VALID = "Linux, an NVIDIA GPU and a PyTorch built for CUDA"
NEW = "--out with a new folder"


@dataclass(frozen=True)
class Options:
    """Run all tests and benchmarks that need an NVIDIA GPU, and write one folder of records."""

    out: Path
    """Folder of the records: new, or one that an earlier run on this machine left incomplete."""
    makemore: Path | None = None
    """A makemore checkout: a folder with makemore.py and names.txt. If omitted, its part is skipped."""
    nanogpt: Path | None = None
    """A nanoGPT checkout: a folder with train.py. If omitted, its part is skipped."""
    minutes: float = 12.0
    """Time limit of everything. Each part has a share of what is left."""
    smoke_test: bool = False
    """Tiny sizes on the CPU: this tests the command itself, and its figures mean nothing."""

    def __post_init__(self) -> None:
        if not 0 < self.minutes < float("inf"):
            raise UsageError("a valid --minutes", f"{self.minutes}", "above 0, for example 12")


@dataclass(frozen=True)
class Part:
    """A measurement, which prints one JSON document."""

    name: str
    share: float
    """Of the time, relative to the shares of the others."""
    words: tuple[str, ...]
    """What follows `python`; SECONDS stands for the time that it may measure."""
    why_not: str = ""
    """Why it is skipped; empty if it is not."""


def parts(options: Options, capability: list[int] | None) -> list[Part]:
    """All parts, in their order."""
    tiny, run = options.smoke_test, str(options.out / "run")
    on = ("--device", device := "cpu" if tiny else "cuda", "--json")
    bf16 = not tiny and capability is not None and capability >= [8, 0]
    dtype = "bfloat16" if bf16 else "float16"
    no_makemore = "" if options.makemore else "no checkout was named: --makemore PATH"
    no_nanogpt = "" if options.nanogpt else "no checkout was named: --nanogpt PATH"
    if not bf16:
        no_nanogpt = "it needs a GPU with bfloat16: compute capability 8.0 or higher"

    def part(
        name: str, share: float, words: tuple[str, ...], sizes: str, tiny_sizes: str, why_not: str = ""
    ) -> Part:
        return Part(name, share, (*words, *(tiny_sizes if tiny else sizes).split()), why_not)

    return [
        part("tests", 3, (_script("gpu_tests"),), "", "tests/data/test_batches.py"),
        part("explain", 1, (_script("gpu_kernels"), device), "", "float32"),
        part(
            "train", 1,
            (*FLASHMORE, "train", "--preset", "makemore", "--out", run, "--resume", "auto", *on),
            "--max-steps 1000", f"--max-steps 3 --speedups none {TINY}",
        ),
        part("generation", 0.5, (_script("draw_names"), run, device), "10000 5", "50 2"),
        part(
            "step", 2, (*FLASHMORE, "bench", "step", *on),
            f"--dtype {dtype} --variants manual sdpa flash efficient cudnn --lengths 16 256 1024 --blocks 20",
            f"--variants manual flash --lengths 16 --blocks 2 {TINY}",
        ),
        part(
            "attention", 1.5, (*FLASHMORE, "bench", "attention", *on),
            f"--dtype {dtype} --head-dim 64 128 --seconds SECONDS", "--length 16 --head-dim 8 --seconds 2",
        ),
        part(
            "ablation", 3, (*FLASHMORE, "bench", "ablation", *on),
            "--seconds SECONDS", f"--speedups fused-adamw no-sync --blocks 2 --seconds 5 {TINY}",
        ),
        part(
            "makemore", 2.5, (_script("against_makemore"), "--makemore", str(options.makemore), *on),
            "--runs 2 --steps 600", "--runs 1 --steps 110", no_makemore,
        ),
        part(
            "nanogpt", 3.5, (_script("against_nanogpt"), "--nanogpt", str(options.nanogpt), "--json"),
            f"--what gpt2-124m --runs {max(1, int(options.minutes // 12))}", "", no_nanogpt,
        ),
    ]  # fmt: skip


def main() -> int:
    """Run every part that has no complete record yet; 1 if one of them failed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # of a scheduler: as Ctrl-C
    try:
        options = tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,))
        return measure(options)
    except FlashmoreError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        again = "The same command again completes the folder."
        print(Interrupted("", "by the user", again), file=sys.stderr)
        return Interrupted.exit_code


def measure(options: Options) -> int:
    """Check the machine, the folder and the checkouts, run the parts, write the report."""
    for checkout, file in ((options.makemore, "makemore.py"), (options.nanogpt, "model.py")):
        if checkout is not None and not (checkout / file).is_file():
            raise UsageError(f"a checkout with {file}", str(checkout), "its folder, or omit the option")
    environment = _environment(options)
    told = _told(options)
    todo = parts(options, environment["environment"]["capability"])
    until = time.monotonic() + 60 * options.minutes
    for number, part in enumerate(todo):
        if told.get(part.name, {}).get("status") == "complete" and _record(options.out, part.name):
            print(f"{part.name}: complete already")
            continue
        ahead = sum(one.share for one in todo[number:] if not one.why_not) or 1
        told[part.name] = _run(part, options.out, max(0.0, until - time.monotonic()) * part.share / ahead)
        became = told[part.name]
        reason = became["reason"] and f": {became['reason']}"
        print(f"{part.name}: {became['status']} ({became['seconds']:.0f} s){reason}", flush=True)
        _write(options.out / "parts.json", {"smoke_test": options.smoke_test, "parts": told})
    print(f"report: {_report(options.out)}")
    return 1 if any(one["status"] in ("failed", "incomplete") for one in told.values()) else 0


def _environment(options: Options) -> dict[str, Any]:
    """What `flashmore env` says, also written to the folder, which is of one machine and one version."""
    done = subprocess.run([sys.executable, *FLASHMORE, "env", "--json"], capture_output=True, check=False)
    if done.returncode:
        reason = _reason(done.stderr.decode(errors="replace"))
        raise UsageError("`flashmore env --json` to run", reason, VALID)
    found: dict[str, Any] = json.loads(done.stdout)
    here = found["environment"]
    if here["device"] != "cuda" and not options.smoke_test:
        devices = ", ".join(found["devices"])
        valid = f"{VALID}; or --smoke-test, which tests this command on the CPU"
        raise UsageError("an NVIDIA GPU", f"torch {here['torch']} sees only {devices}", valid)
    before = _record(options.out, "environment")
    if before is not None and before.get("environment") != here:
        different = [name for name in here if before.get("environment", {}).get(name) != here[name]]
        raise UsageError(
            f"a new folder, or one of this machine and this version of flashmore: {options.out}",
            f"its environment.json has another {', '.join(different)}", NEW,
        )  # fmt: skip
    with disk_errors(f"to create the folder {options.out}", options.out):
        options.out.mkdir(parents=True, exist_ok=True)
        if before is None and any(options.out.iterdir()):
            raise UsageError(f"a new or empty folder {options.out}", "it has other files", NEW)
    _write(options.out / "environment.json", found)
    return found


def _told(options: Options) -> dict[str, dict[str, Any]]:
    """What became of each part before."""
    before = {"smoke_test": options.smoke_test, "parts": {}} | (_record(options.out, "parts") or {})
    if before["smoke_test"] != options.smoke_test:
        kinds = ("measurements", "a smoke test")
        found = kinds[not options.smoke_test]
        raise UsageError(f"a folder of {kinds[options.smoke_test]}", found, NEW)
    return dict(before["parts"])


def _run(part: Part, out: Path, seconds: float) -> dict[str, Any]:
    """Run a part to its end, or to the end of its time; its status, with the reason unless it is complete.

    Its record is written if it printed one, which a benchmark that is interrupted does as well.
    """
    words = [word.replace("SECONDS", f"{SHARE * seconds:.0f}") for word in part.words]
    told: dict[str, Any] = {"command": words, "status": "skipped", "reason": part.why_not, "seconds": 0.0}
    if part.why_not:
        return told
    began, late, log = time.monotonic(), False, out / f"{part.name}.log"
    with disk_errors(f"to write {log}", log), log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            start_new_session=True,
        )  # fmt: skip
        try:
            printed, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            late = True
            printed = _stop(process)
        except BaseException:  # Ctrl-C
            _stop(process)
            raise
    reason = _reason(log.read_text(encoding="utf-8", errors="replace")) if process.returncode else ""
    if process.returncode < 0:
        reason = f"{signal.Signals(-process.returncode).name} ended it"
    if late:
        reason = f"its {seconds:.0f} s were over; more time: --minutes"
    record, status = None, "failed"
    with suppress(ValueError):
        record = json.loads(printed)
    if not isinstance(record, dict):
        reason = reason or "it printed no record"
    else:
        _write(out / f"{part.name}.json", record)
        if not record.get("complete", True):
            status = "incomplete"
        elif not process.returncode:
            status = "complete"
    return told | {"status": status, "reason": reason, "seconds": time.monotonic() - began}


def _stop(process: subprocess.Popen[bytes]) -> bytes:
    """Interrupt a process and those it started, as Ctrl-C would, and kill them if they go on; its output."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=GRACE_SECONDS)[0]
    raise StorageError("a part that ends when it is killed", f"process {process.pid} goes on", "a restart")


def _reason(log: str) -> str:
    """The last message in a log, in one line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()] or ["no word on stderr"]
    if memory := [line for line in lines if "out of memory" in line.lower()]:
        return f"too little memory: {memory[-1]}"
    starts = [number for number, line in enumerate(lines) if line.startswith("wanted: ")]
    return "; ".join(lines[starts[-1] :][:3] if starts else lines[-1:])


def _report(out: Path) -> str:
    """Write the page of what was measured; where it is, or why there is none."""
    records = [str(path) for name in REPORTED if (path := out / f"{name}.json").is_file()]
    if not records:
        return "none, because no benchmark has a record"
    words = [*FLASHMORE, "report", *records, "--out", str(out / "report.html")]
    done = subprocess.run([sys.executable, *words], capture_output=True, check=False)
    if done.returncode:
        return f"none: {_reason(done.stderr.decode(errors='replace'))}"
    return str(out / "report.html")


def _record(folder: Path, name: str) -> Any:
    """The JSON object of this name; None if there is none, or not a whole one."""
    with suppress(OSError, ValueError):
        found = json.loads((folder / f"{name}.json").read_bytes())
        return found if isinstance(found, dict) else None
    return None


def _write(path: Path, document: Any) -> None:
    replace_file(path, as_text(document).encode())


def _script(name: str) -> str:
    return str(HERE / f"{name}.py")


if __name__ == "__main__":
    sys.exit(main())
