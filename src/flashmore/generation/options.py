"""Options of generation. Does not import torch, so that `flashmore generate --help` answers at once."""

from dataclasses import dataclass
from pathlib import Path

from flashmore.errors import require_valid

NAMES = 20
"""How many names are generated if `count` is not given."""


@dataclass(frozen=True)
class GenerateOptions:
    """How names or texts are generated, and how many.

    Raises:
        ConfigError: a value out of range.
    """

    count: int | None = None
    """Number of names, or of texts, to generate. If omitted, 20 names or 1 text."""
    prefix: str = ""
    """Text that every name starts with."""
    temperature: float = 1.0
    """Sampling temperature: lower values favour likely characters."""
    top_k: int | None = None
    """Sample each character from the k most likely ones; 1 is greedy."""
    top_p: float | None = None
    """Sample each character from the smallest set of likely ones whose total probability reaches p."""
    seed: int | None = None
    """Random seed. If omitted, a random one, which is printed."""
    new_only: bool = False
    """Reject names that are in the data."""
    repeats: bool = False
    """Allow duplicate names."""
    max_draws: int | None = None
    """Stop after this many draws. If omitted, 100 per name, but at least 20,000."""
    min_length: int = 1
    """Minimum length of a name, in characters."""
    max_length: int | None = None
    """Maximum length of a name. If omitted, the model's context length."""
    suffix: str = ""
    """Text that every name ends with."""
    contains: str = ""
    """Text that every name contains."""
    pattern: str | None = None
    """Regular expression in RE2 syntax that every whole name matches."""
    like: str | None = None
    """Generate names similar to this one, but not the name itself."""
    max_distance: int = 2
    """With --like: maximum edit distance."""
    avoid: Path | None = None
    """Reject the names in this UTF-8 file, one per line, ignoring case."""
    nearest: bool = False
    """Show the nearest training item of each name, and its edit distance."""
    ngram: bool = False
    """Generate with the best n-gram model of the training items instead of the run's own model."""

    def __post_init__(self) -> None:
        sensible = "above 0, for example 0.8; use --top-k 1 to always take the most likely character"
        for name, holds, valid in (
            ("count", self.count is None or self.count >= 1, "a whole number from 1"),
            ("temperature", 0 < self.temperature < float("inf"), sensible),
            ("top_k", self.top_k is None or self.top_k >= 1, "a whole number from 1"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("max_draws", self.max_draws is None or self.max_draws >= 1, "a whole number from 1"),
            ("min_length", self.min_length >= 1, "a whole number from 1"),
            ("max_length", self.max_length is None or self.max_length >= 1, "a whole number from 1"),
            ("max_distance", self.max_distance >= 1, "a whole number from 1"),
            ("seed", self.seed is None or 0 <= self.seed < 2**63, "a whole number from 0 to 2⁶³ − 1"),
        ):
            require_valid(name, getattr(self, name), holds, valid)
