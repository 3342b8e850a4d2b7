"""`flashmore upgrade`: rewrite, test, write and measure what has a fused replacement in the user's code."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from flashmore.benchmark.gain.measure import measure_gain
from flashmore.cli.parse import options_in, parse
from flashmore.cli.upgrade_options import STDIN, Upgrade, checked
from flashmore.cli.waiting import Waiting
from flashmore.errors import FlashmoreError, UsageError
from flashmore.git import Indices
from flashmore.terminal import say, write_diff, write_file, write_json, write_lines, write_patch
from flashmore.upgrade.annotations import concise, github
from flashmore.upgrade.notebooks.notebook import LARGEST_NOTEBOOK, is_notebook
from flashmore.upgrade.project.files import LARGEST
from flashmore.upgrade.report import INDENT, FileReport, Report
from flashmore.upgrade.rules import rule
from flashmore.upgrade.sarif import sarif
from flashmore.upgrade.search import search, search_stdin
from flashmore.upgrade.settings import Settings
from flashmore.upgrade.site import NotRead, Searched, Site
from flashmore.upgrade.trace.tracer import Source, verify_traced
from flashmore.upgrade.verify.result import not_tested
from flashmore.upgrade.verify.verifier import Verifier
from flashmore.upgrade.write import require_python, write


def main(argv: Sequence[str]) -> int:
    """Run `flashmore upgrade`."""
    command = parse(Upgrade, "upgrade", argv)
    source = checked(command, options_in(argv))
    settings = _settings(command)
    data = _stdin(command.stdin_filename or STDIN) if command.from_stdin else None
    report = _report(_search(command, settings) if data is None else _search_stdin(command, settings, data))
    if command.test or command.write or command.diff or source is not None:
        _test(command, source, report)
    if command.gain and source is not None:
        _measure(command, source, report)
    if command.write and data is not None:
        _write_stdout(command, report, data)
    elif command.write:
        indices = Indices(file.path.resolve() for file in report.files)
        for file in report.files:
            _write(command, file, indices)
    say(*report.remarks)
    _print(command, report)
    if report.problem is not None:
        say(f"{source}: {report.problem}")
        if command.example is not None:
            return 2
    if any(
        one.cell is None and (data is not None or Path(one.path) in command.paths) for one in report.not_read
    ):
        return 2
    found = [one for file in report.files for one in file.rewritten]
    return 0 if all(command.write and one.written for one in found) else 1


def _print(command: Upgrade, report: Report) -> None:
    """Print the report: to stderr if stdout has the rewritten source."""
    stderr = command.write and command.from_stdin
    match "json" if command.json else command.output_format:
        case _ if command.diff:
            left_out = 0
            for file in report.files:
                chosen = file.choose(even_if_slower=command.even_if_slower)
                write_patch(file.patch_bytes(chosen), file.found.encoding)
                left_out += len(file.rewritten) - len(chosen)
            say(*map(str, report.not_read))
            if left_out:
                say(f"places that are not in the patch: {left_out}; --test instead of --diff says why")
        case "full":
            write_diff(report.lines(), INDENT, stderr=stderr)
        case "concise":
            write_lines(concise(report), sys.stderr if stderr else None)
        case "github":
            write_lines(github(report), sys.stderr if stderr else None)
        case "json":
            write_json(report.to_json(), stderr=stderr)
        case "sarif":
            write_json(sarif(report), stderr=stderr)


def _settings(command: Upgrade) -> Settings:
    """The project's settings and the options that change them."""
    anchor = (command.stdin_filename or Path.cwd()) if command.from_stdin else command.paths[0]
    options = (command.select, command.ignore, command.exclude)
    select, ignore, exclude = (
        [word.strip() for each in option for word in each.split(",")] for option in options
    )
    return Settings.read(anchor).with_options(select, ignore, exclude, command.target_torch)


def _stdin(path: Path) -> bytes:
    """What stdin holds of a file."""
    most = LARGEST_NOTEBOOK if is_notebook(path) else LARGEST
    with open(0, "rb", closefd=False) as stdin:
        data = stdin.read(most + 1)
    if len(data) > most:
        raise UsageError(f"at most {most:,} bytes on stdin", "more", "a file of hand-written code")
    return data


def _search(command: Upgrade, settings: Settings) -> Iterator[Searched | NotRead]:
    with Waiting("searching", "files") as waiting:
        yield from search(
            command.paths, os.cpu_count() or 1, waiting.reach, settings, force_exclude=command.force_exclude
        )


def _search_stdin(command: Upgrade, settings: Settings, data: bytes) -> Iterator[Searched | NotRead]:
    path = command.stdin_filename or STDIN
    if not (command.force_exclude and settings.excludes(path)):
        yield search_stdin(path, data, settings)


def _report(results: Iterable[Searched | NotRead]) -> Report:
    report = Report()
    for found in results:
        if isinstance(found, NotRead):
            report.not_read.append(found)
            continue
        report.searched += 1
        if found.notebook is not None:
            report.not_read += found.notebook.not_read(found.path)
        report.ignored += found.ignored
        report.remarks += [f"{found.path}: {remark}" for remark in found.remarks]
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
            for one in wanted:
                if one.site.cell is not None:
                    why_not = not_tested("notebooks are not run", on=f"the inputs from {source}")
                    one.verifications.append(why_not)
            files = [file for file in report.files if file.found.notebook is None]
            with_lines = [
                one
                for file in files
                for one in file.rewritten
                if one.site.fragment is not None and not rule(one.site.code).setup
            ]
            hopeful = [(file, [one for one in file.rewritten if not one.refuted]) for file in files]
            traced = verify_traced(
                [one.site for one in with_lines],
                source,
                verifier,
                rewritten={file.path: file.rewriting(sites) for file, sites in hopeful if sites},
                seconds=command.seconds,
            )
            for one, verification in zip(with_lines, traced.verifications, strict=True):
                one.verifications.append(verification)
            report.problem = traced.problem
            waiting.advance(len(wanted))


def _measure(command: Upgrade, source: Source, report: Report) -> None:
    """Time whole steps and the lines of each place, before and after all tested rewrites and each rule's."""
    files = [file for file in report.files if file.found.notebook is None]
    sites = [one for file in files for one in file.rewritten if one.passed]
    if not sites:
        say("gain not measured: no rewrite passed its test")
        return

    def rewriting(chosen: Sequence[Site]) -> dict[Path, str]:
        some = {file.path: [one for one in file.rewritten if one.site in chosen] for file in files}
        return {file.path: file.rewriting(some[file.path]) for file in files if some[file.path]}

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
        write(file.found, file.encoded(chosen), force=command.force, indices=indices)
    except FlashmoreError as error:
        file.why_not_written = f"{error.found} (valid: {error.valid})"
    else:
        for one in chosen:
            one.written = True


def _write_stdout(command: Upgrade, report: Report, data: bytes) -> None:
    """Print the source with the tested rewrites, or as it was: an editor replaces its text by it."""
    encoding = "utf-8"
    for file in report.files:
        encoding = file.found.encoding
        if chosen := file.choose(even_if_slower=command.even_if_slower):
            data = file.encoded(chosen)
            require_python(file.found, data)
            for one in chosen:
                one.written = True
    write_file(data, encoding)
