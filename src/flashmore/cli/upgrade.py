"""`flashmore upgrade`: rewrite, prove, write and measure hand-written attention in the user's code."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from flashmore.cli.parse import options_in, parse
from flashmore.cli.waiting import Waiting
from flashmore.errors import FlashmoreError, UsageError
from flashmore.git import Indices
from flashmore.terminal import say, write_json, write_lines, write_patch
from flashmore.upgrade.report import FileReport, Report, SiteReport
from flashmore.upgrade.site import NotRead

if TYPE_CHECKING:
    from flashmore.upgrade.trace.tracer import Source


@dataclass(frozen=True)
class Upgrade:
    """Find hand-written attention in Python files and show how PyTorch's fused attention would replace it.

    Reads only, by default: nothing of yours is run, and nothing is written. Exit code 0 where nothing is
    to be rewritten, 1 where something could be, 2 for an error or a path that cannot be read; with --write, 0
    if all of it was written.
    """

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Files, folders, or packages' folders."""
    prove: bool = False
    """Run old and new lines on synthetic tensors, forward and backward, and say what was proved."""
    example: str | None = None
    """module:function that returns a model and its inputs; imported and run, for proofs on real inputs."""
    run: str | None = None
    """A script with its arguments, such as "train.py --steps 3"; run as it is, for proofs on real inputs."""
    gain: bool = False
    """With --example or --run: measure what the proved rewrites bring to attention and to the whole step."""
    write: bool = False
    """Write what is proved, each file whole or not at all."""
    force: bool = False
    """Write files that differ from what git has committed, too."""
    even_if_slower: bool = False
    """Write rewrites that --gain found to be slower, too."""
    diff: bool = False
    """Print a patch that `git apply` takes, and nothing else."""
    seconds: Annotated[float, tyro.conf.arg(metavar="S")] = 300.0
    """How long an example or a script may take."""
    json: bool = False
    """Print one JSON document on stdout and nothing else."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore upgrade`."""
    command = parse(Upgrade, "upgrade", argv)
    _check(command, options_in(argv))
    report = _search(command)
    if command.prove or command.write or command.example or command.run:
        _prove(command, report)
    if command.gain:
        _measure(command, report)
    if command.write:
        indices = Indices(file.path.resolve() for file in report.files)
        for file in report.files:
            _write(command, file, indices)
    if command.diff:
        _show_patch(report)
    elif command.json:
        write_json(report.to_json())
    else:
        write_lines(report.lines())
    return _exit_code(command, report)


def _check(command: Upgrade, given: set[str]) -> None:
    """Refuse invalid combinations of options before anything is read."""
    if not command.paths:
        raise UsageError("files or folders", "none", "flashmore upgrade model.py, or a folder")
    for path in command.paths:
        if _is_missing(path):
            raise UsageError("files or folders that are there", str(path), "a path that exists")
    _refuse_both(command.diff and command.json, "--diff or --json", "one of them")
    _refuse_both(bool(command.example and command.run), "--example or --run", "one at a time")
    if command.gain and not (command.example or command.run):
        raise UsageError("a program to measure", "--gain alone", "--gain with --example or --run")
    if command.force and not command.write:
        raise UsageError("--force together with --write", "--force alone", "--write --force")
    if command.even_if_slower and not (command.write and command.gain):
        raise UsageError(
            "--even-if-slower with a gain to go by", "no --write --gain", "--write --gain beside it"
        )
    if "--seconds" in given and not (command.example or command.run):
        raise UsageError("a program for --seconds to limit", "none", "--seconds with --example or --run")
    if command.seconds <= 0:
        raise UsageError("--seconds above 0", f"{command.seconds:g}", "300")
    if command.example is not None:
        module, colon, function = command.example.partition(":")
        if not (colon and function.isidentifier() and all(part.isidentifier() for part in module.split("."))):
            raise UsageError("--example module:function", f"'{command.example}'", "package.module:make_model")
    if command.run is not None:
        _script(command.run)


def _is_missing(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # it cannot be looked at: the search says why
        return False
    return False


def _refuse_both(both: bool, wanted: str, valid: str) -> None:
    if both:
        raise UsageError(wanted, "both", valid)


def _script(line: str) -> tuple[str, ...]:
    """The words of --run; a leading `python` may be there or not."""
    expected, valid = (
        "--run with a script or a module, and its arguments",
        '"train.py --steps 3", "python -m train"',
    )
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UsageError(expected, f"{line!r}: {error}", valid) from None
    if words and Path(words[0]).name.startswith("python"):
        words = words[1:]
    if len(words) > 1 and words[0] == "-m":
        return tuple(words)
    if not words or not Path(words[0]).is_file():
        found = f"'{words[0]}' is no file" if words else "nothing"
        raise UsageError(expected, found, valid)
    return tuple(words)


def _source(command: Upgrade) -> "Source | None":
    from flashmore.upgrade.trace.tracer import Source

    if command.example is not None:
        return Source(example=command.example)
    return None if command.run is None else Source(run=_script(command.run))


def _search(command: Upgrade) -> Report:
    from flashmore.upgrade.search import search

    report = Report()
    with Waiting("searching", "files") as waiting:
        for found in search(command.paths, processes=os.cpu_count() or 1, progress=waiting.reach):
            if isinstance(found, NotRead):
                report.not_read.append(found)
                continue
            report.searched += 1
            if found.sites:
                report.files.append(_file_report(FileReport.of(found)))
    return report


def _file_report(file: FileReport) -> FileReport:
    for report in file.rewritten:
        report.diff = file.patch([report])
    return file


def _prove(command: Upgrade, report: Report) -> None:
    """Prove on synthetic tensors, then on the inputs from the user's program."""
    from flashmore.upgrade.prove.prover import Prover

    wanted = [site for file in report.files for site in file.rewritten]
    if not wanted:
        return
    source = _source(command)
    with (
        Prover() as prover,
        Waiting("proving", "places", len(wanted) * (1 if source is None else 2)) as waiting,
    ):
        for one in wanted:
            one.proofs.append(prover.prove(one.site))
            waiting.advance()
        if source is not None:
            from flashmore.upgrade.trace.tracer import prove_traced

            with_lines = [one for one in wanted if one.site.fragment is not None]
            hopeful = {file.path: [one for one in file.rewritten if not one.refuted] for file in report.files}
            traced = prove_traced(
                [one.site for one in with_lines],
                source,
                rewritten={f.path: f.rewriting(hopeful[f.path]) for f in report.files if hopeful[f.path]},
                seconds=command.seconds,
                prover=prover,
            )
            for one, proof in zip(with_lines, traced.proofs, strict=True):
                one.proofs.append(proof)
            report.problem = traced.problem
            waiting.advance(len(wanted))
    if report.problem is not None:
        say(f"{source}: {report.problem}")


def _measure(command: Upgrade, report: Report) -> None:
    """Time whole steps and attention alone, before and after all proved rewrites."""
    from flashmore.upgrade.gain.measure import measure_gain

    source = _source(command)
    proved = [(file, one) for file in report.files for one in file.rewritten if one.proved]
    if not proved or source is None:
        say("no gain to measure: nothing is proved")
        return
    rewritten = {file.path: file.rewriting([one for f, one in proved if f is file]) for file, _ in proved}
    with Waiting("measuring"):
        report.gain = measure_gain(
            [one.site for _, one in proved], rewritten, source, seconds=command.seconds
        )
    for (_, one), gain in zip(proved, report.gain.sites, strict=True):
        one.gain = gain


def _write(command: Upgrade, file: FileReport, indices: Indices) -> None:
    """Write the proved places of one file; problems are reported, and the other files continue."""
    chosen = file.choose(even_if_slower=command.even_if_slower)
    if not chosen:
        return
    from flashmore.upgrade.write import write_source

    try:
        write_source(file.as_read(), file.rewriting(chosen), force=command.force, indices=indices)
    except FlashmoreError as error:
        file.why_not_written = f"{error.found} (valid: {error.valid})"
    else:
        for one in chosen:
            one.written = True


def _show_patch(report: Report) -> None:
    for file in report.files:
        chosen: list[SiteReport] = [one for one in file.rewritten if one.proved is not False]
        write_patch(file.patch_bytes(chosen), file.encoding)
    say(*(f"{one.path}: not read: {one.reason}" for one in report.not_read))


def _exit_code(command: Upgrade, report: Report) -> int:
    if any(Path(one.path) in command.paths for one in report.not_read):
        return 2
    left = [
        one for one in report.sites if one.site.verdict == "rewritten" and not (command.write and one.written)
    ]
    return 1 if left else 0
