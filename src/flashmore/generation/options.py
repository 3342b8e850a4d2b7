"""Options of generation. Does not import torch, so that `flashmore generate --help` answers at once."""

from dataclasses import dataclass

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

    def __post_init__(self) -> None:
        sensible = "above 0, for example 0.8; --top-k 1 always takes the likeliest character"
        for name, holds, valid in (
            ("count", self.count >= 1, "a whole number from 1"),
            ("temperature", 0 < self.temperature < float("inf"), sensible),
            ("top_k", self.top_k is None or self.top_k >= 1, "a whole number from 1"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("seed", self.seed is None or 0 <= self.seed < 2**63, "a whole number from 0 to 2⁶³ − 1"),
        ):
            if not holds:
                option = "--" + name.replace("_", "-")
                raise ConfigError(f"a sensible {option}", f"{getattr(self, name)}", valid)
