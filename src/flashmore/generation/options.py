"""Options of generation. Does not import torch, so that `flashmore generate --help` answers at once."""

from dataclasses import dataclass
from pathlib import Path

from flashmore.errors import ConfigError


@dataclass(frozen=True)
class GenerateOptions:
    """How many names to generate, and how.

    Raises:
        ConfigError: a value out of range.
    """

    count: int = 20
    """Names to generate."""
    prefix: str = ""
    """Characters that every name starts with."""
    temperature: float = 1.0
    """Sampling temperature: below 1 favours likely characters, above 1 unlikely ones."""
    top_k: int | None = None
    """Sample each character from the k most likely; 1 is greedy."""
    top_p: float | None = None
    """Sample each character from the fewest whose total probability reaches p."""
    seed: int | None = None
    """Random seed; none draws a new one and reports it."""
    new_only: bool = False
    """Omit names that are in the data."""
    repeats: bool = False
    """Allow the same name more than once."""
    max_draws: int | None = None
    """Stop after this many draws; none means 100 for each name, and at least 20,000."""
    min_length: int = 1
    """Fewest characters of a name."""
    max_length: int | None = None
    """Most characters of a name; none leaves it to the model's context."""
    suffix: str = ""
    """Characters that every name ends with."""
    contains: str = ""
    """Characters that every name contains, together and in this order."""
    pattern: str | None = None
    """Regular expression, in RE2's syntax, that matches every name as a whole."""
    like: str | None = None
    """Names close to this one, which is itself omitted."""
    max_distance: int = 2
    """With --like: most insertions, deletions and substitutions of a character."""
    avoid: Path | None = None
    """Omit the names in this file, one per line in UTF-8, in upper or lower case."""
    nearest: bool = False
    """Add the closest name of the training part to each name, and its edit distance."""

    def __post_init__(self) -> None:
        sensible = "above 0, for example 0.8; --top-k 1 always takes the likeliest character"
        for name, holds, valid in (
            ("count", self.count >= 1, "a whole number from 1"),
            ("temperature", 0 < self.temperature < float("inf"), sensible),
            ("top_k", self.top_k is None or self.top_k >= 1, "a whole number from 1"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("max_draws", self.max_draws is None or self.max_draws >= 1, "a whole number from 1"),
            ("min_length", self.min_length >= 1, "a whole number from 1"),
            ("max_length", self.max_length is None or self.max_length >= 1, "a whole number from 1"),
            ("max_distance", self.max_distance >= 1, "a whole number from 1"),
            ("seed", self.seed is None or 0 <= self.seed < 2**63, "a whole number from 0 to 2⁶³ − 1"),
        ):
            if not holds:
                option = "--" + name.replace("_", "-")
                raise ConfigError(f"a sensible {option}", f"{getattr(self, name)}", valid)
