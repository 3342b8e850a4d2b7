"""Interrupt a run and resume it: its final weights equal those of an uninterrupted run.

    python examples/resume.py

On the command line this is Ctrl-C, then `flashmore train --resume RUN`.
"""

import signal
import tempfile
from pathlib import Path

import torch

from flashmore import FlashmoreError, Observer, Run, TrainConfig, resume, train

CONFIG = TrainConfig(
    n_layer=1,
    n_embd=32,
    dropout=0.1,
    max_steps=40,
    warmup_steps=5,
    eval_interval=20,
    attention="flash",
    ngram_smoothing=0.0,
    device="cpu",  # a measured choice of attention may differ on a busy machine
)


class PressCtrlC(Observer):
    """Simulates Ctrl-C at step 30, between two checkpoints."""

    def stepped(self, step: int, loss: float, step_ms: float, characters_per_s: float) -> None:
        """Print the progress; the loss is in nats per character."""
        print(f"step {step}: loss {loss:.4f}, {step_ms:.0f} ms a step, {characters_per_s:,.0f} characters/s")
        if step == 30:
            signal.raise_signal(signal.SIGINT)


def main() -> None:
    """Train twice with the same config, once with an interruption, and compare all weights bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder, "whole"), Path(folder, "cut")
        train(CONFIG, whole)
        try:
            train(CONFIG, cut, PressCtrlC())
        except FlashmoreError as interrupted:
            print(f"interrupted: {interrupted.found}")
        print(f"resumed, and done after step {resume(cut).steps}")

        never, once = (run.load_weights(run.steps[-1]) for run in map(Run.open, (whole, cut)))
        same = [name for name in never if torch.equal(never[name], once[name])]
        print(f"{len(same)} of {len(never)} weight tensors are equal bit for bit")


if __name__ == "__main__":
    main()
