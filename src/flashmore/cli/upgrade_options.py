"""The options of `flashmore upgrade`, and which of them go together."""

import shlex
from collections.abc import Set
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import tyro

from flashmore.errors import UsageError
from flashmore.upgrade.notebooks.notebook import is_notebook
from flashmore.upgrade.trace.tracer import Source

STDIN = Path("-")
Words = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclass(frozen=True)
class Upgrade:
    """Find hand-written attention, norms, activations and losses in Python code, and show fused replacements.

    By default, your code is only read: it is not run, and no file is changed. Exit code: 0 if there is
    nothing to rewrite or --write has written everything, 1 if something can be rewritten, 2 for an error or a
    path that cannot be read.
    """

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Python files, Jupyter notebooks or folders; - reads one file from stdin."""
    test: bool = False
    """Run the old and the new lines on synthetic tensors, forward and backward, and compare the results."""
    example: str | None = None
    """module:function that returns a model and its inputs. Runs it to test rewrites on real inputs."""
    run: str | None = None
    """A script and its arguments, such as "train.py --steps 3". Runs it to test rewrites on real inputs."""
    gain: bool = False
    """With --example or --run: measure the speed-up of the tested rewrites, by rule and in total."""
    write: bool = False
    """Write the tested rewrites to the files."""
    force: bool = False
    """Also write files that have uncommitted changes."""
    even_if_slower: bool = False
    """Also write rewrites that --gain found to be slower, or for which PyTorch has no fused kernel."""
    diff: bool = False
    """Print what --write would write, as a patch for `git apply`, and nothing else."""
    seconds: Annotated[float, tyro.conf.arg(metavar="S")] = 300.0
    """Time limit for --example or --run, in seconds."""
    output_format: Literal["full", "concise", "json", "github", "sarif"] = "full"
    """Full report, one line per place, JSON, annotations for GitHub Actions, or SARIF 2.1.0."""
    json: bool = False
    """The same as --output-format json."""
    select: Annotated[Words, tyro.conf.arg(metavar="CODES")] = ()
    """Rules to apply, separated by commas: codes, prefixes of codes, or ALL; see `flashmore rule --all`."""
    ignore: Annotated[Words, tyro.conf.arg(metavar="CODES")] = ()
    """Rules to skip, in the same form."""
    exclude: Annotated[Words, tyro.conf.arg(metavar="PATTERNS")] = ()
    """Files and folders to skip: patterns as in .gitignore, separated by commas."""
    target_torch: Annotated[str | None, tyro.conf.arg(metavar="VERSION")] = None
    """Oldest version of torch to support: rewrites that need a newer one are refused. If omitted, the
    project's requirements decide."""
    force_exclude: bool = False
    """Skip excluded files even if they are given as paths, for tools such as pre-commit."""
    stdin_filename: Path | None = None
    """With -: path of the file whose source is read from stdin."""

    @property
    def from_stdin(self) -> bool:
        """Whether the source is read from stdin."""
        return self.paths == (STDIN,)


def checked(command: Upgrade, given: Set[str]) -> Source | None:
    """The program to run, if any; invalid options are refused before anything is read."""
    for path in command.paths:
        if path == STDIN:
            continue
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError("existing files or folders", str(path), "a path that exists") from None
        except OSError:
            continue  # it cannot be looked at: the search says why
    program = bool(command.example or command.run)
    notebook = next(filter(is_notebook, command.paths), None)
    options = ("test", "write", "example", "run")
    outputs = sorted(given & {"--diff", "--output-format", "--json"})
    testing = [f"--{name}" for name in options if getattr(command, name)]
    for refused, wanted, found, valid in (
        (not command.paths, "files or folders", "none", "flashmore upgrade model.py, or a folder"),
        (STDIN in command.paths and not command.from_stdin, "- as the only path", "others, too", "- alone"),
        (command.stdin_filename is not None and not command.from_stdin,
         "- with --stdin-filename", "no -", "flashmore upgrade - --stdin-filename model.py"),
        (command.from_stdin and program, "files for --example or --run", "-", "paths of files"),
        (command.diff and command.from_stdin and command.write,
         "--diff or --write with -", "both", "one of them: each prints to stdout"),
        (len(outputs) > 1, "one of --diff, --output-format and --json", " and ".join(outputs), "one of them"),
        (command.example and command.run, "--example or --run", "both", "only one of them"),
        (program and notebook is not None,
         "Python files with --example or --run", f"the notebook {notebook}", "--test for notebooks"),
        (command.gain and not program,
         "an example or script to measure", "--gain alone", "--gain with --example or --run"),
        (command.force and not command.write,
         "--force with --write", "--force alone", "--write --force"),
        (command.even_if_slower and not (command.write or command.diff),
         "--even-if-slower with --write or --diff", "--even-if-slower alone", "--write --even-if-slower"),
        ("--seconds" in given and not program,
         "an example or script for --seconds", "none", "--seconds with --example or --run"),
        (command.seconds <= 0, "--seconds above 0", f"{command.seconds:g}", "300"),
        (testing and find_spec("torch") is None,
         f"torch for {', '.join(testing)}", "torch is not installed",
         "`pip install torch`, or none of these options: the search needs no torch"),
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
    if not is_module and words and is_notebook(Path(words[0])):
        raise UsageError(
            wanted, f"the notebook {words[0]}", "a script; `jupyter nbconvert --to script` makes one"
        )
    if not is_module and not (words and Path(words[0]).is_file()):
        raise UsageError(wanted, f"'{words[0]}' is not a file" if words else "nothing", valid)
    return tuple(words)
