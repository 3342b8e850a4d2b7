"""`flashmore VERB …`: run the command and turn errors into a message and an exit code."""

import importlib
import io
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from keyword import iskeyword
from pathlib import Path
from traceback import walk_tb

from flashmore.cli.process import INTERRUPTED
from flashmore.errors import (
    FlashmoreError,
    RankLost,
    RankStopped,
    UsageError,
    is_of_the_compiler,
    is_out_of_memory,
)
from flashmore.ranks import is_connected, local_rank, rank, speak, world_size
from flashmore.terminal import best_effort_stderr, say, write

VERBS = {
    "train": "train a model on a list of names or one long text",
    "warm": "compile the training step ahead of time, for later runs",
    "prepare": "convert a large list or text for training; can be interrupted",
    "look": "inspect a list before training: counts, characters, likely mistakes",
    "generate": "generate names or text from a run",
    "score": "print the log-probabilities of given names",
    "page": "turn a run into a web page that generates names and shows attention",
    "play": "write the page of a run and open it in the browser",
    "attention": "show what each attention head attends to in a name",
    "pack": "pack a run into one file to share, without the training items",
    "runs": "list the runs in a folder: losses, size, state",
    "verify": "check every file of a run for damage",
    "export": "export a run to transformers, ONNX Runtime, torch.export, llama.cpp",
    "import": "import a makemore, nanoGPT or Hugging Face model as a run",
    "compare": "compare runs or models side by side",
    "bench": "benchmark attention backends, training steps and speed-ups",
    "explain": "show which attention kernels can run a call, and why others cannot",
    "estimate": "estimate memory, communication and time of a step on several GPUs",
    "choose": "measure and cache the fastest attention backend",
    "speedups": "list the speed-ups, their costs, and whether they work here",
    "upgrade": "rewrite hand-written attention, norms and losses as fused calls",
    "rule": "explain a rule of `upgrade`, with an example",
    "log": "send a run's metrics to an experiment tracker",
    "report": "turn benchmark records into an HTML page or Markdown",
    "env": "print versions, devices and cache folders, for bug reports",
    "demo": "train, compare and benchmark on the built-in names (1.5 minutes)",
}


SHARED = ("train", "generate", "bench step", "bench ablation")
"""Commands that several processes of torchrun do together."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after `flashmore`; None means those of the process.

    Returns:
        0 success, 1 failed or incomplete, 2 wrong use or bad input, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # do not fail on characters outside stdout's encoding
    with best_effort_stderr():
        try:
            code = _run(words)
            sys.stdout.flush()  # a full disk or a closed pipe can still be reported here
            return code
        except KeyboardInterrupt:
            say("interrupted")
            return INTERRUPTED
        except BrokenPipeError:  # the reader closed the pipe (`| head`)
            _drop_unwritten()
            return 1
        except Exception as error:
            ours = _for_users(error)
            # Before the ranks are connected each of them finds the same, or what is the same on its machine.
            told = local_rank() > 0 if not is_connected() else isinstance(error, RankStopped | RankLost)
            if not told:
                speak()
            if ours is None:
                raise
            # Line by line, such that no part can imitate another.
            lines: Sequence[str] = [f"rank {rank()}: {line}" if rank() else line for line in ours.lines]
            if is_connected() and not isinstance(error, RankStopped):
                from flashmore.parallel import to_print

                lines = to_print(lines, lost=isinstance(error, RankLost))
            say(*lines)
            if isinstance(error, OSError):
                _drop_unwritten()
            return ours.exit_code


def _for_users(error: Exception) -> FlashmoreError | None:
    """The message in three parts for an error; None for one that only a defect of ours causes."""
    if isinstance(error, FlashmoreError):
        return error
    found = str(error).strip().partition("\n")[0] or type(error).__name__
    if isinstance(error, OSError):
        found = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or found
        valid = "run the same command again with free disk space and a writable output"
        return FlashmoreError("to finish the command", found, valid)
    if is_out_of_memory(error):
        return FlashmoreError(
            "enough memory to finish the command", found, "more free memory, or smaller sizes"
        )
    if is_of_the_compiler(error):
        valid = "a working C++ compiler, space for its cache, or --speedups without compile and max-autotune"
        return FlashmoreError("torch.compile to succeed", found, valid)
    if isinstance(error, ModuleNotFoundError) and error.name == "torch":
        return UsageError("torch for this command", "torch is not installed", "`pip install torch`")
    frames = walk_tb(error.__traceback__)
    if any(frame.f_globals.get("__name__") == "torch._logging._internal" for frame, _ in frames):
        valid = "no TORCH_LOGS, or names listed by: TORCH_LOGS=help python -c 'import torch'"
        return UsageError("names of PyTorch's logs in TORCH_LOGS", repr(os.environ.get("TORCH_LOGS")), valid)
    return None


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        write(_help())
        return 0 if words else 2
    if words[0] == "--version":
        write(f"flashmore {version('flashmore')}\n")
        return 0
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UsageError("a working directory", "it was deleted", "cd to an existing folder") from None
    verb, *rest = words
    if verb not in VERBS:
        raise UsageError("a command", f"'{verb}'", ", ".join(VERBS))
    command = verb if verb != "bench" else " ".join(words[:2])
    if world_size() > 1 and command not in SHARED:
        found = f"{world_size()} processes of torchrun"
        raise UsageError(
            f"a single process for flashmore {command}", found, f"flashmore {command} without torchrun"
        )
    for word in rest:  # a run could not store what is not valid Unicode
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UsageError("arguments in UTF-8", ascii(word), "another name for this file") from None
    module = importlib.import_module(f"flashmore.cli.{verb}{'_' * iskeyword(verb)}")
    try:
        return int(module.main(rest))
    except SystemExit as stop:  # the parser has printed its help or an error
        return int(stop.code or 0)


def _drop_unwritten() -> None:
    """Discard output that cannot be written: Python would report the error again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _help() -> str:
    verbs = "\n".join(f"  {verb:<10} {what}" for verb, what in VERBS.items())
    return (
        "usage: flashmore COMMAND [OPTIONS]\n\n"
        "Learn from a list of names and generate new ones, measure what PyTorch's\n"
        "speed-ups gain on this machine, and upgrade hand-written attention.\n\n"
        f"{verbs}\n\n"
        "Run `flashmore COMMAND --help` for the options of a command,\n"
        "`flashmore --version` for the version.\n"
    )
