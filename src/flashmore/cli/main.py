"""`flashmore VERB …`: find the verb, run it, turn what went wrong into a message and an exit code."""

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from flashmore.errors import FlashmoreError

VERBS = {
    "train": "learn from a file of names; leaves a run's folder",
    "generate": "more names from a run",
    "score": "how likely a run finds given names",
    "compare": "several runs or models side by side, with a picture",
    "demo": "the whole story on the built-in names, in three minutes",
}
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `flashmore`; None means those of the process.

    Returns:
        0 fine, 1 failed or incomplete, 2 wrong use or bad input, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(_help())
        return 0 if words else 2
    if words[0] == "--version":
        sys.stdout.write(f"flashmore {version('flashmore')}\n")
        return 0
    verb, *rest = words
    if verb not in VERBS:
        sys.stderr.write(f"wanted: a command\n found: '{verb}'\n valid: {', '.join(VERBS)}\n")
        return 2
    try:
        command = importlib.import_module(f"flashmore.cli.{verb}")
        return int(command.main(rest))
    except FlashmoreError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left (`| head`). Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, MemoryError) as error:
        found = error or "no memory left"
        sys.stderr.write(
            f"wanted: to finish the command\n found: {found}\n valid: free what is full, retry\n"
        )
        return 1


def _help() -> str:
    verbs = "\n".join(f"  {verb:<10} {what}" for verb, what in VERBS.items())
    return (
        "usage: flashmore COMMAND [OPTIONS]\n\n"
        "Train small character models at the speed PyTorch's documentation makes possible,\n"
        "and measure what each documented speed-up is worth on this machine.\n\n"
        f"{verbs}\n\n"
        "flashmore COMMAND --help tells a command's options; flashmore --version the version.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
