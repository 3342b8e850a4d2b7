"""What was asked of a comparison with makemore."""

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
    """`step`: one training step, makemore's against ours, same model and training parameters. `swap`:
    makemore's own step, by hand and with its attention exchanged in memory for the fused one. `generate`:
    names drawn from the same trained weights, by makemore's `generate` and by ours. `time-to-loss`: whole
    runs, up to makemore's best test loss; --runs 2 takes a quarter of an hour."""
    data: Path | None = None
    """Names to train on; none means the checkout's own names.txt."""
    runs: int = 5
    """Processes on each side, in turn."""
    steps: int = 400
    """Training steps: in each process, or for `generate` of the model that both sides draw from."""
    batch: int = 1000
    """Names that one call of `generate` draws."""
    their_steps: int = 15_000
    """For `time-to-loss`: steps of makemore, whose best test loss comes at about this one."""
    our_steps: int = 1100
    """For `time-to-loss`: steps of ours, over which its schedule runs."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where both sides train, for `step` and `swap`."""
    threads: int = 2
    """CPU threads on both sides."""
    json: bool = False
    """Print one JSON document on stdout and nothing else."""

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
