"""What to train: one flat, typed recipe, the same for Python and the command line.

It imports no torch, so that `flashmore train --help` answers at once.
"""

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional, Suppress

from flashmore.errors import RecipeError

Model = Literal["bigram", "mlp", "bow", "rnn", "gru", "lstm", "wavenet", "transformer"]
Attention = Literal["auto", "manual", "sdpa", "math", "flash", "efficient", "cudnn"]
Preset = Literal["names", "names-long", "makemore", "shakespeare", "shakespeare-fast", "gpt2-124m"]
Start = Literal["torch", "gpt2", "zero_residual"]
Activation = Literal["gelu_tanh", "gelu", "relu_squared"]

LARGEST = 10**15
"""Of any count: beyond it somebody's finger rested on a key."""
MOST_THREADS = 4096
LARGEST_FACTOR = 1e38
"""Of what the optimizer multiplies float32 numbers by."""


@dataclass(frozen=True)
class Recipe:
    """Data, model, optimisation and machine of one training run.

    Raises:
        RecipeError: a number outside its range.
    """

    file: Positional[Path | None] = None
    """Text file with one item a line, or with --mode text one long text or a `.bin` file of 16-bit ids; none
    means the built-in names, or with --mode text and --vocabulary random ids."""
    mode: Literal["items", "text"] = "items"
    """What the file holds: items, each learned by itself, or one long text, learned in windows."""
    encoding: str = "utf-8"
    """How the file's bytes spell characters, such as utf-8 or latin-1."""
    split: str = "80/10/10"
    """Shares of train/validation/test in percent, or `makemore` for makemore's own split of items; a long
    text is cut by position."""
    split_seed: int = 3407
    """Decides which item goes into which part; apart from --seed, so that seeds can be compared."""

    context: Suppress[int | None] = None  # an option of `train` alone: `bench step` has another of that name
    """With --mode text: characters that a window holds; none means 256."""
    vocabulary: int | None = None
    """With --mode text: ids of the model where FILE is a `.bin` file; none means the largest there plus 1."""

    model: Model = "transformer"
    """Which model to train."""
    layers: int = 4
    """Number of layers of the transformer and of the wavenet."""
    heads: int = 4
    """Attention heads; they must divide the channels."""
    channels: int = 64
    """Width of embeddings and hidden layers."""
    activation: Activation = "gelu_tanh"
    """In the transformer's feed-forward: makemore's tanh GELU, the exact GELU, or the square of ReLU."""
    bias: bool = True
    """Whether the transformer's linear layers and normalisations add a bias."""
    tied: bool = False
    """One matrix reads and writes ids in the transformer."""
    start: Start = "torch"
    """The transformer's weights before training: PyTorch's own, GPT-2's, or blocks that begin as nothing."""
    dropout: float = 0.0
    """Probability of dropping an embedding or residual channel in training."""
    attention: Attention = "auto"
    """How attention is computed; `auto` picks one for this machine and says which."""
    attention_dropout: float = 0.0
    """Probability of dropping an attention weight in training; many fused kernels refuse it."""

    steps: int = 2000
    """Optimiser steps."""
    batch: int = 32
    """Items, or windows of a long text, a step."""
    lr: float = 2e-3
    """Highest learning rate."""
    optimizer: Literal["auto", "adamw", "muon"] = "auto"
    """AdamW for all, or Muon for the matrices of a transformer's blocks; `auto`: as --speedups has it."""
    muon_lr: float = 0.02
    """Highest learning rate of what Muon updates."""
    schedule: Literal["auto", "constant", "cosine"] = "auto"
    """After warm-up: stay at --lr, or fall to --lr-end of it along a cosine; `auto`: as --speedups has it."""
    lr_end: float = 0.01
    """Where the cosine ends, as a share of the highest learning rate."""
    warmup: int = 100
    """Steps over which the learning rate rises from 0."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: float = 0.99
    """AdamW's decay of the squared gradient."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    decay: Literal["all", "matrices"] = "matrices"
    """What it acts on: all parameters as in makemore, or all but biases and normalisations' gains."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 leaves it as it is."""
    seed: int = 3407
    """Decides the initial weights, the order of the data and dropout."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; `auto` takes a GPU if there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the matrix products; the 16-bit ones run under autocast. `auto` is float32, unless
    --speedups has bf16."""
    speedups: tuple[str, ...] = ("auto",)
    """What to do about speed: `auto` (what pays here, for a run of this length), `none`, `exact` (the same
    gradients), `all`, or names that `flashmore speedups` lists. An option of its own, --attention, wins."""
    threads: int = 0
    """CPU threads, at most as many as the machine has CPUs; 0 leaves PyTorch's choice."""

    eval_every: int = 250
    """Steps between evaluations on validation; each also saves a checkpoint."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "layers", "heads", "channels", "eval_every", "log_every"):
            self._require(name, 1 <= getattr(self, name) <= LARGEST, f"a whole number from 1 to {LARGEST:,}")
        self._require("warmup", 0 <= self.warmup <= LARGEST, f"a whole number from 0 to {LARGEST:,}")
        self._require("threads", 0 <= self.threads <= MOST_THREADS, f"from 0 to {MOST_THREADS:,}")
        for name in ("clip", "weight_decay"):
            self._require(name, 0 <= getattr(self, name) <= LARGEST_FACTOR, f"from 0 to {LARGEST_FACTOR:g}")
        for name in ("dropout", "attention_dropout", "beta1", "beta2"):
            self._require(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        for name in ("seed", "split_seed"):
            self._require(name, 0 <= getattr(self, name) < 2**63, "a whole number from 0 to 2⁶³ − 1")
        for name in ("lr", "muon_lr"):
            valid = f"above 0 and at most {LARGEST_FACTOR:g}, for example 1e-3"
            self._require(name, 0 < getattr(self, name) <= LARGEST_FACTOR, valid)
        if self.optimizer == "muon" and self.model != "transformer":
            raise RecipeError(
                "a transformer for --optimizer muon", f"--model {self.model}", "--optimizer adamw"
            )
        self._require("lr_end", 0 <= self.lr_end <= 1, "from 0 to 1, a share of --lr")
        for name in ("context", "vocabulary"):
            value = getattr(self, name)
            self._require(
                name, value is None or 1 <= value <= LARGEST, f"a whole number from 1 to {LARGEST:,}"
            )
            if value is not None and self.mode == "items":
                raise RecipeError(f"--mode text beside --{name}", "--mode items", "one of the two options")
        if "none" in self.speedups and len(self.speedups) > 1:
            found = " ".join(self.speedups)
            raise RecipeError("--speedups none alone, or others", found, "none, or the others without it")
        chosen = (self.activation, self.bias, self.tied, self.start)
        if self.model != "transformer" and chosen != ("gelu_tanh", True, False, "torch"):
            wanted = "a transformer for --activation, --no-bias, --tied and --start"
            found = f"--model {self.model}, which has none of these choices"
            raise RecipeError(wanted, found, "--model transformer, or none of these options")

    def _require(self, name: str, holds: bool, valid: str) -> None:
        if not holds:
            option = "--" + name.replace("_", "-")
            raise RecipeError(f"a sensible {option}", f"{getattr(self, name)}", valid)

    @property
    def precision(self) -> Literal["float32", "bfloat16", "float16"]:
        """The dtype of the matrix products."""
        return "float32" if self.dtype == "auto" else self.dtype

    @property
    def threads_here(self) -> int:
        """`threads` on this machine, whose CPUs they do not exceed: a run may come from a larger one.

        The number counts all CPUs, not those that this process may use now, so that it is the same whenever
        a run goes on.
        """
        return min(self.threads, os.cpu_count() or 1)

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain JSON values, for a run's config.json."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        file = None if self.file is None else str(self.file)
        return values | {"file": file, "speedups": list(self.speedups)}


NANOGPT = Recipe(
    mode="text", split="90/10/0", tied=True, bias=False, activation="gelu", start="gpt2",
    optimizer="adamw", schedule="cosine",
    lr_end=0.1, beta1=0.9, beta2=0.99, weight_decay=0.1, clip=1.0,
)  # fmt: skip
"""What nanoGPT's configurations share: https://github.com/karpathy/nanoGPT, train.py and config/."""
SHAKESPEARE = replace(
    NANOGPT, context=64, layers=4, heads=4, channels=128, batch=12, steps=2000, lr=1e-3, warmup=100
)
TEXT_PRESETS: dict[str, Recipe] = {
    "shakespeare": SHAKESPEARE,
    "shakespeare-fast": replace(
        SHAKESPEARE, layers=2, channels=64, activation="relu_squared", start="zero_residual", batch=24,
        steps=900, lr=1.2e-2, lr_end=0.0, warmup=60, eval_every=25,
    ),
    "gpt2-124m": replace(
        NANOGPT, context=1024, layers=12, heads=12, channels=768, batch=12, steps=600_000, lr=6e-4,
        warmup=2000, beta2=0.95, vocabulary=50_304, dtype="bfloat16", eval_every=2000,
    ),
}  # fmt: skip


NAMES = Recipe(activation="relu_squared", batch=128, lr=6e-3, weight_decay=0.1, steps=1500)
"""Found by the experiments in docs/log.md, on names held out of the training part."""
NAMES_LONG = replace(NAMES, optimizer="muon", dropout=0.1, steps=8000, eval_every=500)


def recipe_for(model: Model = "transformer", preset: Preset = "names") -> Recipe:
    """The recipe to start from: the preset's, with what this model needs otherwise.

    Args:
        model: the table-like bigram and the shallow models stand, and want, a higher learning rate.
        preset: `names` is this project's own, and `names-long` takes minutes for a better loss; `makemore`
            repeats makemore's training parameters;
            `shakespeare` and `gpt2-124m` repeat nanoGPT's for long text, and `shakespeare-fast` reaches the
            first one's loss sooner (docs/text.md).
    """
    if preset in TEXT_PRESETS:
        recipe = TEXT_PRESETS[preset]
        if model == "transformer":
            return recipe
        return replace(recipe, model=model, activation="gelu_tanh", bias=True, tied=False, start="torch")
    if preset == "makemore":
        return Recipe(
            model=model, optimizer="adamw", lr=5e-4, schedule="constant", warmup=0, weight_decay=0.01,
            decay="all", clip=0.0, steps=15_000, batch=32, eval_every=500,
        )  # fmt: skip
    if model == "bigram":
        return Recipe(model=model, lr=5e-2, weight_decay=0.0)
    if model == "transformer":
        return NAMES_LONG if preset == "names-long" else NAMES
    return Recipe(model=model)
