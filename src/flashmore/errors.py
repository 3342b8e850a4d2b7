"""Everything that flashmore raises on purpose.

    FlashmoreError          exit 1   something failed that was rightly asked for
    ├── StorageError        exit 1   the disk refused to take or to give a file
    ├── TrainingFailed      exit 1   the loss is no longer a number
    ├── Interrupted         exit 130 Ctrl-C; what was done so far is saved
    └── UsageError          exit 2   wrong use or bad input
        ├── DataError       exit 2   a file that nothing can be learned from
        ├── ConfigError     exit 2   sizes or options that cannot go together
        ├── RunError        exit 2   a folder that is no run, or a damaged one
        └── BackendUnavailable  exit 2   an attention backend that cannot run here

Every message has three parts, so that the reader never has to guess the next move: what was wanted,
what was found, and what would be valid.
"""

LONGEST = 2000
"""Characters of a part of a message: a value in it may be as long as the file that it is from."""


class FlashmoreError(Exception):
    """A failure with a message in three parts.

    Args:
        wanted: what the program needed at this point.
        found: what was there instead.
        valid: what would be accepted, or what to do next.
    """

    exit_code = 1

    def __init__(self, wanted: str, found: str, valid: str) -> None:
        super().__init__(wanted, found, valid)
        self.wanted, self.found, self.valid = map(_shortened, (wanted, found, valid))

    def __str__(self) -> str:
        return f"wanted: {self.wanted}\n found: {self.found}\n valid: {self.valid}"


class StorageError(FlashmoreError):
    """The disk refused: it is full, read-only, or the folder is not ours to write."""


class TrainingFailed(FlashmoreError):
    """Training cannot go on: the loss is not a finite number."""


class Interrupted(FlashmoreError):
    """The user pressed Ctrl-C; everything up to the last whole step is saved."""

    exit_code = 130


class UsageError(FlashmoreError):
    """Wrong use or bad input: another call would succeed."""

    exit_code = 2


class DataError(UsageError):
    """The data cannot be learned from: missing, empty, binary, wrongly encoded, too small, too long."""


class ConfigError(UsageError):
    """Sizes or options that cannot go together, such as heads that do not divide the channels."""


class RunError(UsageError):
    """A folder that is not a run, or whose files were cut off or altered."""


class BackendUnavailable(UsageError):
    """An attention backend cannot run for this device, dtype and shape.

    Args:
        backend: the name that was asked for.
        reasons: every reason against it, in plain words.
        usable: the names that would work instead.
    """

    def __init__(self, backend: str, reasons: tuple[str, ...], usable: tuple[str, ...]) -> None:
        self.backend = backend
        self.reasons = reasons
        self.usable = usable
        super().__init__(
            wanted=f"attention backend '{backend}'",
            found="it cannot run here: " + "; ".join(reasons),
            valid="one of " + ", ".join(usable) if usable else "no backend takes this input",
        )


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python or torch ran out of memory: on the CPU torch has no exception of its own for this."""
    text = str(error)
    from_torch = isinstance(error, RuntimeError) and ("allocate" in text or "out of memory" in text)
    return from_torch or isinstance(error, MemoryError)


def is_of_the_compiler(error: Exception) -> bool:
    """Whether torch.compile failed: its exceptions have no base in common but the packages they are from."""
    return type(error).__module__.startswith(("torch._inductor", "torch._dynamo"))
