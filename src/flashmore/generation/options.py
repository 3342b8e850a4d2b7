"""What to generate. It imports no torch, so that `flashmore generate --help` answers at once."""

from dataclasses import dataclass

from flashmore.errors import ConfigError


@dataclass(frozen=True)
class GenerateOptions:
    """How many names, and how they are drawn.

    Raises:
        ConfigError: a number outside its range.
    """

    count: int = 20
    """Names to generate."""
    prefix: str = ""
    """Characters that every name begins with."""
    temperature: float = 1.0
    """Below 1 keeps to what is likely, above 1 ventures further."""
    top_k: int | None = None
    """Draw each character among the k likeliest only; 1 is greedy."""
    top_p: float | None = None
    """Draw each character among the fewest whose probabilities reach p together."""
    seed: int | None = None
    """The same seed gives the same names; none draws a fresh one and reports it."""
    new_only: bool = False
    """Leave out the names of the data."""
    repeats: bool = False
    """Keep a name that was drawn before."""

    def __post_init__(self) -> None:
        self._require("count", self.count >= 1, "a whole number from 1")
        self._require(
            "temperature",
            0 < self.temperature < float("inf"),
            "above 0, for example 0.8; --top-k 1 always takes the likeliest character",
        )
        self._require("top_k", self.top_k is None or self.top_k >= 1, "a whole number from 1")
        self._require("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1")
        self._require("seed", self.seed is None or 0 <= self.seed < 2**63, "a whole number from 0 to 2⁶³ − 1")

    def _require(self, name: str, holds: bool, valid: str) -> None:
        if not holds:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"a sensible {option}", f"{getattr(self, name)}", valid)
