"""`flashmore upgrade`: rewrite, test, write and measure what has a fused replacement in the user's code."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from flashmore.benchmark.gain.measure import measure_gain
from flashmore.cli.parse import options_in, parse
from flashmore.cli.waiting import Waiting
from flashmore.errors import FlashmoreError, UsageError
from flashmore.git import Indices
from flashmore.terminal import say, write_diff, write_json, write_patch
from flashmore.upgrade.report import INDENT, FileReport, Report
from flashmore.upgrade.rules import rule
from flashmore.upgrade.search import search
from flashmore.upgrade.site import NotRead, Site
from flashmore.upgrade.trace.tracer import Source, verify_traced
from flashmore.upgrade.verify.verifier import Verifier
from flashmore.upgrade.write import write_source


@dataclass(frozen=True)
class Upgrade:
    """Find hand-written attention, norms, activations and losses in Python files, and fused replacements.

    By default, your code is only read: it is not run, and no file is changed. Exit code: 0 if there is
    nothing to rewrite or --write has written everything, 1 if something can be rewritten, 2 for an error or a
    path that cannot be read.
    """

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Python files or folders."""
    test: bool = False
    """Run the old and the new lines on synthetic tensors, forward and backward, and compare the results."""
    example: str | None = None
    """module:function that returns a model and its inputs. Runs it to test rewrites on real inputs."""
    run: str | None = None
    """A script and its arguments, such as "train.py --steps 3". Runs it to test rewrites on real inputs."""
    gain: bool = False
    """With --example or --run: measure the speed-up of the tested rewrites, of each rule and together."""
    write: bool = False
    """Write the tested rewrites to the files."""
    force: bool = False
    """Also write files that have uncommitted changes."""
    even_if_slower: bool = False
    """Also write rewrites that --gain found to be slower, or for which PyTorch has no fused kernel."""
    diff: bool = False
    """Print a patch for `git apply`, and nothing else."""
    seconds: Annotated[float, tyro.conf.arg(metavar="S")] = 300.0
    """Time limit for --example or --run, in seconds."""
    json: bool = False
    """Print the result to stdout as JSON, and nothing else."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore upgrade`."""
    command = parse(Upgrade, "upgrade", argv)
    source = _checked(command, options_in(argv))
    report = _search(command)
    if command.test or command.write or source is not None:
        _test(command, source, report)
    if command.gain and source is not None:
        _measure(command, source, report)
    if command.write:
        indices = Indices(file.path.resolve() for file in report.files)
        for file in report.files:
            _write(command, file, indices)
    if command.diff:
        for file in report.files:
            hopeful = [one for one in file.rewritten if one.passed is not False]
            write_patch(file.patch_bytes(hopeful), file.encoding)
        say(*(f"{one.path}: not read: {one.reason}" for one in report.not_read))
    elif command.json:
        write_json(report.to_json())
    else:
        write_diff(report.lines(), INDENT)
    if report.problem is not None:
        say(f"{source}: {report.problem}")
        if command.example is not None:
            return 2
    if any(Path(one.path) in command.paths for one in report.not_read):
        return 2
    rewritten = [one for file in report.files for one in file.rewritten]
    return 0 if all(command.write and one.written for one in rewritten) else 1


def _checked(command: Upgrade, given: set[str]) -> Source | None:
    """The program to run, if any; invalid options are refused before anything is read."""
    for path in command.paths:
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError("existing files or folders", str(path), "a path that exists") from None
        except OSError:
            continue  # it cannot be looked at: the search says why
    program = bool(command.example or command.run)
    for refused, wanted, found, valid in (
        (not command.paths, "files or folders", "none", "flashmore upgrade model.py, or a folder"),
        (command.diff and command.json, "--diff or --json", "both", "one of them"),
        (command.example and command.run, "--example or --run", "both", "only one of them"),
        (command.gain and not program,
         "an example or script to measure", "--gain alone", "--gain with --example or --run"),
        (command.force and not command.write,
         "--force with --write", "--force alone", "--write --force"),
        (command.even_if_slower and not command.write,
         "--even-if-slower with --write", "--even-if-slower alone", "--write --even-if-slower"),
        ("--seconds" in given and not program,
         "an example or script for --seconds", "none", "--seconds with --example or --run"),
        (command.seconds <= 0, "--seconds above 0", f"{command.seconds:g}", "300"),
    ):  # fmt: skip
        if refused:
            raise UsageError(wanted, found, valid)
    if command.run is not None:
        return Source(run=_script(command.run))
    if command.example is None:
        return None
    module, colon, function = command.example.partition(":")
    if not (colon and function.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise UsageError("--example module:function", f"'{command.example}'", "package.module:make_model")
    return Source(example=command.example)


def _script(line: str) -> tuple[str, ...]:
    """The words of --run; a leading `python` may be there or not."""
    wanted = "--run with a script or a module, and its arguments"
    valid = '"train.py --steps 3", "python -m train"'
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UsageError(wanted, f"{line!r}: {error}", valid) from None
    if words and Path(words[0]).name.startswith("python"):
        words = words[1:]
    is_module = len(words) > 1 and words[0] == "-m"
    if not is_module and not (words and Path(words[0]).is_file()):
        raise UsageError(wanted, f"'{words[0]}' is not a file" if words else "nothing", valid)
    return tuple(words)


def _search(command: Upgrade) -> Report:
    report = Report()
    with Waiting("searching", "files") as waiting:
        for found in search(command.paths, processes=os.cpu_count() or 1, progress=waiting.reach):
            if isinstance(found, NotRead):
                report.not_read.append(found)
                continue
            report.searched += 1
            if found.sites:
                file = FileReport.of(found)
                for one in file.rewritten:
                    one.diff = file.patch([one])
                report.files.append(file)
    return report


def _test(command: Upgrade, source: Source | None, report: Report) -> None:
    """Test on synthetic tensors, then on the inputs from the user's program."""
    wanted = [site for file in report.files for site in file.rewritten]
    if not wanted:
        return
    total = len(wanted) * (1 if source is None else 2)
    with Verifier() as verifier, Waiting("testing", "places", total) as waiting:
        for one in wanted:
            one.verifications.append(verifier.verify(one.site))
            waiting.advance()
        if source is not None:
            with_lines = [
                one for one in wanted if one.site.fragment is not None and not rule(one.site.code).setup
            ]
            hopeful = [(file, [one for one in file.rewritten if not one.refuted]) for file in report.files]
            traced = verify_traced(
                [one.site for one in with_lines],
                source,
                rewritten={file.path: file.rewriting(sites) for file, sites in hopeful if sites},
                seconds=command.seconds,
                verifier=verifier,
            )
            for one, verification in zip(with_lines, traced.verifications, strict=True):
                one.verifications.append(verification)
            report.problem = traced.problem
            waiting.advance(len(wanted))


def _measure(command: Upgrade, source: Source, report: Report) -> None:
    """Time whole steps and the lines of each place, before and after all tested rewrites and each rule's."""
    sites = [one for file in report.files for one in file.rewritten if one.passed]
    if not sites:
        say("gain not measured: no rewrite passed its test")
        return

    def rewriting(chosen: Sequence[Site]) -> dict[Path, str]:
        some = {file.path: [one for one in file.rewritten if one.site in chosen] for file in report.files}
        return {file.path: file.rewriting(some[file.path]) for file in report.files if some[file.path]}

    with Waiting("measuring"):
        found = measure_gain([one.site for one in sites], rewriting, source, seconds=command.seconds)
    report.gain = found
    for one, gain in zip(sites, found.sites, strict=True):
        one.gain = gain


def _write(command: Upgrade, file: FileReport, indices: Indices) -> None:
    """Write the tested places of one file; problems are reported, and the other files continue."""
    chosen = file.choose(even_if_slower=command.even_if_slower)
    if not chosen:
        return
    try:
        write_source(file.as_read(), file.rewriting(chosen), force=command.force, indices=indices)
    except FlashmoreError as error:
        file.why_not_written = f"{error.found} (valid: {error.valid})"
    else:
        for one in chosen:
            one.written = True
