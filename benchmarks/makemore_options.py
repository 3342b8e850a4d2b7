"""Options of a comparison with makemore."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flashmore.errors import UsageError


@dataclass(frozen=True)
class Options:
    """Compare flashmore with a makemore checkout on this machine."""

    makemore: Path
    """The checkout: a folder with makemore.py."""
    what: Literal["step", "swap", "generate", "time-to-loss"] = "step"
    """`step`: a training step with the same model and training parameters. `swap`: makemore's own step, with
    its manual attention and with fused attention, replaced in memory. `generate`: names drawn from the same
    trained weights. `time-to-loss`: whole runs, up to makemore's best test loss; --runs 2 takes a quarter of
    an hour."""
    data: Path | None = None
    """Names to train on. If omitted, the checkout's names.txt."""
    runs: int = 5
    """Number of processes of each side; they alternate."""
    steps: int = 400
    """Training steps in each process; for `generate`, of the model that both sides draw from."""
    batch: int = 1000
    """Number of names drawn in one call of `generate`."""
    their_steps: int = 15_000
    """For `time-to-loss`: steps of makemore, which reaches its best test loss at about this step."""
    our_steps: int = 600
    """For `time-to-loss`: steps of flashmore, and of its learning rate schedule."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of both sides, for `step` and `swap`."""
    threads: int = 2
    """CPU threads of both sides."""
    json: bool = False
    """Print the result to stdout as JSON, and nothing else."""

    @property
    def script(self) -> Path:
        """The checkout's makemore.py.

        Raises:
            UsageError: there is none.
        """
        script = (self.makemore / "makemore.py").resolve()
        if not script.is_file():
            raise UsageError("a makemore checkout", f"no makemore.py in {self.makemore}", "--makemore PATH")
        return script

    @property
    def names(self) -> Path:
        """The file to train on."""
        return (self.data or self.makemore / "names.txt").resolve()
