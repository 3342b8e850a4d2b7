"""Compare the headline figures of this tree with those of another commit or of a wheel: what became slower?

    python benchmarks/regressions.py [--against COMMIT|WHEEL]

Both sides run on this machine in turn, a process at a time, and every second round in reverse order. Each has
its own source, a worktree of the commit or the unpacked wheel, and its own caches, which an uncounted round
fills. A figure that one side cannot measure is named with the reason. Exit code 1 if anything is slower.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import tyro

from comparison import Record, run_python
from flashmore.errors import FlashmoreError, Interrupted, UsageError
from flashmore.files import replace_file
from flashmore.measuring.environment import environment
from flashmore.measuring.result import as_text
from flashmore.measuring.statistics import EQUIVALENCE, FEWEST_PAIRS, Blocks, ratio

ROOT = Path(__file__).resolve().parents[1]
DRAW = ROOT / "benchmarks" / "draw_names.py"
RECORDS = "benchmarks/results/*.json"
KIND = ("cpu_name", "cpu_count", "torch")
"""What two machines must have in common for their times to be compared."""
SETTLED = 100
"""Steps at the start that are not counted."""
HERE, THERE = "this tree", "reference"
MODEL = ("--preset", "makemore", "--device", "cpu")
TINY = (
    *("--n-layer", "1", "--n-head", "2", "--n-embd", "8", "--batch-size", "4", "--attention", "flash"),
    *("--speedups", "none", "--max-steps", "120", "--eval-interval", "120", "--device", "cpu"),
)


@dataclass(frozen=True)
class Options:
    """Measure this tree against another version of flashmore, in turn."""

    against: str | None = None
    """A commit, tag or branch of this repository, or a wheel. If omitted, the last tag or, without one, the
    commit of the newest committed record that names one."""
    minutes: float = 15.0
    """No round begins that would probably end after this time."""
    rounds: int = 20
    """Most rounds; with fewer than 6, nothing is decided."""
    equivalence: float = EQUIVALENCE
    """Differences up to this percentage count as no difference."""
    threads: int = 2
    """CPU threads of both sides."""
    out: Path | None = None
    """Write the record to this file."""
    json: bool = False
    """Print the record to stdout as JSON, and nothing else."""
    smoke_test: bool = False
    """Tiny models without a compiler: this tests the command itself, and its figures mean nothing."""

    def __post_init__(self) -> None:
        for name, value in (("minutes", self.minutes), ("rounds", self.rounds), ("threads", self.threads)):
            if not 0 < value < float("inf"):
                raise UsageError(f"a valid --{name}", f"{value}", "a number above 0")
        if not 0 < self.equivalence < 100:
            raise UsageError("a valid --equivalence", f"{self.equivalence}", "a percentage, such as 3")


@dataclass(frozen=True)
class Side:
    """A version of flashmore and its caches."""

    source: Path
    """The folder that contains the package."""
    work: Path
    options: Options
    losses: list[float] = field(default_factory=list)
    """The test loss of each training with the defaults."""

    def run(self, words: list[str]) -> str:
        """Run Python with this version; what it printed."""
        own = {"PYTHONPATH": str(self.source), "FLASHMORE_CACHE": str(self.work / "cache")}
        own["TORCHINDUCTOR_CACHE_DIR"] = str(self.work / "cache" / "torchinductor")
        own["PYTHONDONTWRITEBYTECODE"] = ""  # or each process of a new worktree compiled its modules again
        return run_python(words, self.options.threads, self.work, own)

    def train(self, *words: str) -> tuple[dict[str, Any], list[float], float]:
        """Train on the built-in names: the result, milliseconds of settled steps, seconds of the process."""
        words = TINY if self.options.smoke_test else words
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            out = ["--json", "--out", f"{folder}/run"]
            began = time.perf_counter()
            result = json.loads(self.run(["-m", "flashmore", "train", *words, *out]))
            seconds = time.perf_counter() - began
            lines = Path(folder, "run", "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        metrics = [json.loads(line) for line in lines]
        return result, [line["step_ms"] for line in metrics if line["step"] > SETTLED], seconds


def exact_step(side: Side) -> list[float]:
    """Compiled steps of makemore's model with every exact speed-up."""
    return side.train(*MODEL, "--speedups", "exact", "--max-steps", "400")[1]


def eager_step(side: Side) -> list[float]:
    """The same steps without any speed-up."""
    return side.train(*MODEL, "--speedups", "none", "--max-steps", "200")[1]


def drawn_names(side: Side) -> list[float]:
    """Calls that draw names from one run, which the reference trained."""
    count = "100" if side.options.smoke_test else "5000"
    run = str(side.work.parent / "run")
    found: list[float] = json.loads(side.run([str(DRAW), run, "cpu", count, "3"]))["call_ms"]
    return found


def whole_training(side: Side) -> list[float]:
    """The command with its defaults, from its start to its end."""
    result, _, seconds = side.train("--device", "cpu")
    side.losses.append(result["test_loss"])
    return [1000 * seconds]


def first_step(side: Side) -> list[float]:
    """The command with one step, from its start to its end, where an earlier run compiled it."""
    return [1000 * side.train("--device", "cpu", "--max-steps", "1")[2]]


FIGURES: dict[str, Callable[[Side], list[float]]] = {
    "exact compiled step": exact_step,
    "eager step": eager_step,
    "5,000 names drawn": drawn_names,
    "`train` with its defaults": whole_training,
    "`train --max-steps 1`, warm cache": first_step,
}


def main() -> int:
    """Measure and print; 1 if anything is slower."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: removes the worktree
    try:
        options = tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,))
        record = compare(options)
        if options.out is not None:
            replace_file(options.out, as_text(record).encode())
    except FlashmoreError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted: nothing was compared.", file=sys.stderr)
        return Interrupted.exit_code
    print(as_text(record) if options.json else report(record), end="")
    return 1 if any(one.get("verdict") == "slower" for one in record["figures"].values()) else 0


def compare(options: Options) -> dict[str, Any]:
    """Measure both sides in turn until the time is over, and judge."""
    until = time.monotonic() + 60 * options.minutes
    load = [os.getloadavg()[0]]
    with (
        tempfile.TemporaryDirectory() as name,
        reference(options.against, work := Path(name)) as (named, source),
    ):
        sides = {
            THERE: Side(source, work / "there", options),
            HERE: Side(ROOT / "src", work / "here", options),
        }
        for side in sides.values():
            side.work.mkdir()
            prepare(side)
        drawn = TINY if options.smoke_test else (*MODEL, "--speedups", "none", "--max-steps", "400")
        sides[THERE].run(["-m", "flashmore", "train", *drawn, "--out", str(work / "run"), "--json"])
        samples, why_not = in_turn(sides, options, until)
    figures: dict[str, Any] = judged(samples, options.equivalence)
    figures |= {name: {"why_not": reason} for name, reason in why_not.items()}
    record = {
        "what": "regressions",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "reference": named,
        "environment": environment(torch.device("cpu")),
        "threads": options.threads,
        "smoke_test": options.smoke_test,
        "load": [*load, os.getloadavg()[0]],
        "figures": figures,
        "samples_ms": samples,
        "test_loss": {name: side.losses for name, side in sides.items()},
    }
    return record | {"since": since(record, committed(), options.equivalence)}


def prepare(side: Side) -> None:
    """Make sure that a side runs its own source, and compile what `train` uses with its defaults.

    Versions without `flashmore warm` compile nothing ahead.
    """
    found = Path(side.run(["-c", "import flashmore; print(flashmore.__file__)"]).strip())
    if not found.is_relative_to(side.source.resolve()):
        raise UsageError(f"flashmore from {side.source}", f"{found}", "a commit or wheel with that package")
    if not side.options.smoke_test and " warm " in side.run(["-m", "flashmore", "--help"]):
        side.run(["-m", "flashmore", "warm", "--device", "cpu"])


def in_turn(
    sides: Mapping[str, Side], options: Options, until: float
) -> tuple[dict[str, dict[str, list[list[float]]]], dict[str, str]]:
    """The blocks of each figure and side, after a round that is not counted; why other figures have none."""
    samples: dict[str, dict[str, list[list[float]]]] = {
        name: {side: [] for side in sides} for name in FIGURES
    }
    why_not: dict[str, str] = {}
    longest = 0.0
    for done in range(options.smoke_test, options.rounds + 1):
        began = time.monotonic()
        if done > 1 and began + longest > until:
            break
        for name, measure in FIGURES.items():
            if name in why_not or (not done and measure is whole_training):  # it is long and already compiled
                continue
            order = list(sides)[:: 1 if done % 2 else -1]
            try:
                blocks = {side: measure(sides[side]) for side in order}
            except UsageError as error:
                why_not[name] = str(error)
                continue
            for side, block in blocks.items():
                samples[name][side] += [block] * bool(done)
        longest = max(longest, time.monotonic() - began)
        print(f"round {done} of at most {options.rounds}: {longest:.0f} s", file=sys.stderr)
    return {name: found for name, found in samples.items() if name not in why_not}, why_not


def judged(samples: Mapping[str, Mapping[str, Blocks]], equivalence: float) -> dict[str, Any]:
    """Medians of both sides and the ratio, above 1 if this tree is faster."""
    return {
        name: {
            "median_ms": {
                side: statistics.median(ms for block in one for ms in block) for side, one in of.items()
            },
            "pairs": len(of[HERE]),
            **ratio(of[THERE], of[HERE], equivalence).to_json(THERE, HERE),
        }
        for name, of in samples.items()
    }


def since(record: Record, earlier: list[dict[str, Any]], equivalence: float) -> dict[str, Any] | None:
    """This tree's figures against the last of these records from the same kind of machine, if there is one.

    The two were not measured in turn, so this says less than the comparison with the reference.
    """
    alike = [one for one in earlier if one.get("what") == record["what"] and kind(one) == kind(record)]
    if not alike:
        return None
    last = alike[-1]
    samples = {}
    for name in record["samples_ms"].keys() & last["samples_ms"].keys():
        before, now = last["samples_ms"][name][HERE], record["samples_ms"][name][HERE]
        pairs = min(len(before), len(now))
        samples[name] = {THERE: before[:pairs], HERE: now[:pairs]}
    commit = last["environment"]["commit"]
    return {"commit": commit, "created": last["created"], "figures": judged(samples, equivalence)}


def kind(record: Record) -> list[Any]:
    """What must be equal in two records for their times to be compared."""
    return [record["threads"], record["smoke_test"], *(record["environment"][name] for name in KIND)]


def committed() -> list[dict[str, Any]]:
    """The committed records of measurements that name their commit and time, the newest last."""
    found = [json.loads((ROOT / name).read_bytes()) for name in git("ls-files", RECORDS).splitlines()]
    named = [one for one in found if one.get("environment", {}).get("commit") and "created" in one]
    return sorted(named, key=lambda one: str(one["created"]))


@contextmanager
def reference(against: str | None, work: Path) -> Iterator[tuple[str, Path]]:
    """The name of the reference and the folder with its package, while the context lasts.

    Raises:
        UsageError: no such commit or wheel, or none was named and there is no tag and no record.
    """
    if against is not None and against.endswith(".whl"):
        try:
            with zipfile.ZipFile(against) as wheel:
                wheel.extractall(work / "source")
        except (OSError, zipfile.BadZipFile) as error:
            raise UsageError(f"the wheel {against}", str(error), "a wheel of flashmore") from None
        yield Path(against).name, work / "source"
        return
    commit = git("rev-parse", "--verify", "--end-of-options", f"{against or last_version()}^{{commit}}")
    tree = work / "source"
    git("worktree", "add", "--detach", str(tree), commit)
    try:
        yield commit[:12], tree / "src"
    finally:
        git("worktree", "remove", "--force", str(tree))


def last_version() -> str:
    """The last tag or, without one, the commit of the newest committed record."""
    with suppress(UsageError):
        return git("describe", "--tags", "--abbrev=0")
    if not (records := committed()):
        raise UsageError("a reference", "no tag and no committed record", "--against with a commit or wheel")
    return str(records[-1]["environment"]["commit"]).removesuffix("+")


def git(*words: str) -> str:
    """What git says in this repository."""
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        found = done.stderr.strip().rpartition("\n")[2]
        raise UsageError(f"git {' '.join(words)}", found, "a commit, tag or branch of this repository")
    return done.stdout.strip()


def report(record: Record) -> str:
    """The figures for people."""
    lines = [f"this tree against {record['reference']}, in turn; load average {record['load'][-1]:.1f}"]
    lines += map(_line, record["figures"].items())
    if all(record["test_loss"].values()):
        there, here = (statistics.mean(record["test_loss"][side]) for side in (THERE, HERE))
        lines.append(f"  test loss with the defaults: {there:.4f} → {here:.4f}")
    if (before := record["since"]) is None:
        machine = ", ".join(f"{name} {record['environment'][name]}" for name in KIND)
        lines.append(f"no committed record of this kind of machine ({machine}, {record['threads']} threads)")
    else:
        lines.append(f"against the record of {before['commit']}, {before['created']}, not in turn:")
        lines += map(_line, before["figures"].items())
    return "".join(f"{line}\n" for line in lines)


def _line(figure: tuple[str, Mapping[str, Any]]) -> str:
    name, found = figure
    if "why_not" in found:
        return f"  {name:<36} no figure: {found['why_not'].splitlines()[1].strip()}"
    before, now = found["median_ms"][THERE], found["median_ms"][HERE]
    told = f"  {name:<36} {found['verdict']:<14} {before:,.1f} → {now:,.1f} ms, "
    told += f"{found['value']:.3f} times as fast"
    few = f"; {found['pairs']} rounds, {FEWEST_PAIRS} are needed" if found["pairs"] < FEWEST_PAIRS else ""
    return f"{told} (95 % {found['low']:.3f} – {found['high']:.3f}){few}"


if __name__ == "__main__":
    sys.exit(main())
