"""Train, read the metrics, generate and score from Python.

    python examples/python_api.py [FOLDER]

The run is saved in FOLDER, which must be new or empty. If omitted, a temporary folder is used.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from flashmore import FlashmoreError, GenerateOptions, Run, TrainConfig, generate, score, train


def tell(folder: Path) -> None:
    """Train a small WaveNet on the built-in names for a few seconds, and use it."""
    config = replace(TrainConfig(model="wavenet"), n_embd=32, max_steps=100, eval_interval=50)
    result = train(config, folder)
    print(
        f"{result.model}: {result.parameters:,} parameters, test loss {result.test_loss:.2f} nats a character"
    )

    run = Run.open(folder)  # later, on any machine, the folder is enough
    for line in run.read_metrics():
        if "val_loss" in line:
            print(f"step {line['step']}: training {line['loss']:.2f}, validation {line['val_loss']:.2f}")

    for name in generate(run, GenerateOptions(count=5, prefix="ma", temperature=0.8, seed=1)).names:
        print(f"{name.text} ({name.novelty})")

    for scored in score(run, ["emma", "xqzw"]):
        print(f"{scored.text}: {scored.log_prob_per_char:.2f} a character ({scored.novelty})")

    try:
        score(run, ["emma!"])
    except FlashmoreError as error:
        print(error)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        tell(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            tell(Path(temporary, "run"))
