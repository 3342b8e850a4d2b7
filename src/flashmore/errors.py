"""The exceptions, each with the exit code of a command that it ends.

Every message has three parts, so that the next action is clear: what was wanted, what was found, and what
would be valid.
"""

LONGEST = 2000
"""Most characters per part of a message, which may contain long values from files."""


class FlashmoreError(Exception):
    """An error with a message in three parts.

    Args:
        wanted: what was expected.
        found: what was found instead.
        valid: what would be accepted, or what to do next.
    """

    exit_code = 1

    def __init__(self, wanted: str, found: str, valid: str) -> None:
        super().__init__(wanted, found, valid)
        self.wanted, self.found, self.valid = map(_shortened, (wanted, found, valid))

    @property
    def lines(self) -> tuple[str, ...]:
        """The message, line by line."""
        return f"wanted: {self.wanted}", f" found: {self.found}", f" valid: {self.valid}"

    def __str__(self) -> str:
        return "\n".join(self.lines)


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"


class StorageError(FlashmoreError):
    """A disk operation failed: the disk is full or read-only, or permission is denied."""


class TrainingFailed(FlashmoreError):
    """Training cannot continue: the loss is not finite, or a step does not fit in memory."""


class Interrupted(FlashmoreError):
    """The user or a scheduler stopped the command; everything up to the last completed step is saved."""

    exit_code = 130

    @property
    def lines(self) -> tuple[str, ...]:
        """The message, a sentence."""
        return (f"Interrupted {self.found}. {self.valid}",)


class RankLost(FlashmoreError):
    """Another process of the same training has ended, so this one cannot go on."""


class RankStopped(FlashmoreError):
    """What ended this training ended it on every rank, and rank 0 reports it."""


class UsageError(FlashmoreError):
    """Wrong use or bad input; a different call would succeed."""

    exit_code = 2


class DataError(UsageError):
    """The data is unusable: missing, empty, binary, wrongly encoded, too small or too long."""


class ConfigError(UsageError):
    """Invalid or incompatible options, such as `n_embd` not a multiple of `n_head`."""


class RunError(UsageError):
    """A folder that is not a run, or whose files were truncated or altered."""


class BackendUnavailable(UsageError):
    """An attention backend cannot run for this device, dtype and shape, for all of the reasons."""

    def __init__(self, backend: str, reasons: tuple[str, ...], usable: tuple[str, ...]) -> None:
        self.backend, self.reasons, self.usable = backend, reasons, usable
        super().__init__(
            wanted=f"attention backend '{backend}'",
            found="it cannot run here: " + "; ".join(reasons),
            valid="one of " + ", ".join(usable) if usable else "no backend takes this input",
        )


def option_of(name: str) -> str:
    """The option that sets a field: `--max-steps` for `max_steps`."""
    return "--" + name.replace("_", "-")


def require_valid(name: str, value: object, holds: bool, valid: str) -> None:
    """Refuse the value of an option, of which the field's name is given, with a ConfigError."""
    if not holds:
        raise ConfigError(f"a valid {option_of(name)}", f"{value}", valid)


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python or torch ran out of memory: torch has no specific exception for this on the CPU."""
    text = str(error)
    from_torch = isinstance(error, RuntimeError) and ("allocate" in text or "out of memory" in text)
    return from_torch or isinstance(error, MemoryError)


def is_of_the_compiler(error: Exception) -> bool:
    """Whether torch.compile failed: its exceptions have no common base class, only common packages."""
    return type(error).__module__.startswith(("torch._inductor", "torch._dynamo"))
