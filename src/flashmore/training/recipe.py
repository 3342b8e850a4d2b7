"""What to train: one flat, typed recipe, the same for Python and the command line.

It imports no torch, so that `flashmore train --help` answers at once.
"""

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional, Suppress

from flashmore.errors import RecipeError
from flashmore.specs import Attention, Model, backend_spec, model_spec, models

Preset = Literal["names", "names-long", "makemore", "shakespeare", "shakespeare-fast", "gpt2-124m"]
Init = Literal["torch", "gpt2", "zero_residual"]
Activation = Literal["gelu_tanh", "gelu", "relu_squared"]

LARGEST = 10**15
"""Upper bound of any count; larger values are typos."""
MOST_THREADS = 4096
LARGEST_FACTOR = 1e38
"""Upper bound of factors in the optimizer, which works in float32."""


@dataclass(frozen=True)
class Recipe:
    """Data, model, optimisation and machine of one training run.

    Raises:
        RecipeError: a number outside its range.
    """

    file: Positional[Path | None] = None
    """Text file with one item per line; with --mode text, one long text or a `.bin` file of 16-bit token ids.
    Default: the built-in names, or with --mode text and --vocab-size random ids."""
    mode: Literal["items", "text"] = "items"
    """`items`: every line is a sequence of its own. `text`: one long text, cut into windows."""
    encoding: str = "utf-8"
    """Text encoding of the file, such as utf-8 or latin-1."""
    split: str = "80/10/10"
    """Percentages for train/validation/test, or `makemore` for makemore's own split of items. A long text is
    split by position."""
    split_seed: int = 3407
    """Seed of the split, separate from --seed so that training seeds can be compared on the same split."""

    # `train` has this option itself: `bench step` has another one of the same name.
    block_size: Suppress[int | None] = None
    """With --mode text: window length in characters (default 256)."""
    vocab_size: int | None = None
    """With --mode text and a `.bin` file: vocabulary size of the model (default: the largest id + 1)."""

    model: Model = "transformer"
    """Model to train."""
    n_layer: int = 4
    """Number of layers (transformer, wavenet)."""
    n_head: int = 4
    """Number of attention heads; --n-embd must be a multiple of it."""
    n_embd: int = 64
    """Width of embeddings and hidden layers."""
    activation: Activation = "gelu_tanh"
    """Activation of the transformer's MLP: tanh-approximated GELU, exact GELU, or squared ReLU."""
    bias: bool = True
    """Whether the transformer's linear layers and layer norms have biases."""
    tie_weights: bool = False
    """Share the transformer's token embedding with its output layer."""
    init: Init = "torch"
    """Initialisation of the transformer: PyTorch's defaults, GPT-2's, or zero-initialised residual
    projections."""
    dropout: float = 0.0
    """Dropout probability on embeddings and residual branches."""
    attention: Attention = "auto"
    """Attention backend; `auto` picks the one that measures fastest on this machine."""
    attention_dropout: float = 0.0
    """Dropout probability on attention weights; several fused kernels do not support it."""

    max_steps: int = 2000
    """Number of optimizer steps."""
    batch_size: int = 32
    """Items, or windows of a long text, per step."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    optimizer: Literal["auto", "adamw", "muon"] = "auto"
    """AdamW, or Muon for the matrices of the transformer's blocks and AdamW for the rest; `auto`
    leaves it to --speedups here."""
    muon_learning_rate: float = 0.02
    """Peak learning rate of the parameters that Muon updates."""
    lr_schedule: Literal["auto", "constant", "cosine"] = "auto"
    """After warm-up: constant, or cosine decay to --min-lr-ratio of the peak; with `auto`,
    --speedups decides."""
    min_lr_ratio: float = 0.01
    """Final learning rate of the cosine schedule as a fraction of the peak."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    beta1: float = 0.9
    """AdamW's decay rate of the first moment."""
    beta2: float = 0.99
    """AdamW's decay rate of the second moment."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    decay_on: Literal["all", "matrices"] = "matrices"
    """Parameters that weight decay applies to: all, as in makemore, or all but biases and norm gains."""
    grad_clip: float = 1.0
    """Maximum gradient norm; 0 disables clipping."""
    seed: int = 3407
    """Seed of the initial weights, the data order and dropout."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to train on; `auto` uses a GPU if there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of matrix products; 16-bit types run under autocast. `auto` is float32, or bfloat16 with
    --speedups bf16."""
    speedups: tuple[str, ...] = ("auto",)
    """`auto` (what pays off here for a run of this length), `none`, `exact` (same gradients), `all`, or names
    listed by `flashmore speedups`. Options such as --attention take precedence."""
    threads: int = 0
    """CPU threads, capped at the number of CPUs; 0 leaves PyTorch's default."""

    eval_interval: int = 250
    """Steps between evaluations on the validation split; a checkpoint is saved at each."""
    log_interval: int = 10
    """Steps between lines in metrics.jsonl."""

    def __post_init__(self) -> None:
        for name in (
            "max_steps",
            "batch_size",
            "n_layer",
            "n_head",
            "n_embd",
            "eval_interval",
            "log_interval",
        ):
            self._require(name, 1 <= getattr(self, name) <= LARGEST, f"a whole number from 1 to {LARGEST:,}")
        self._require(
            "warmup_steps", 0 <= self.warmup_steps <= LARGEST, f"a whole number from 0 to {LARGEST:,}"
        )
        self._require("threads", 0 <= self.threads <= MOST_THREADS, f"from 0 to {MOST_THREADS:,}")
        for name in ("grad_clip", "weight_decay"):
            self._require(name, 0 <= getattr(self, name) <= LARGEST_FACTOR, f"from 0 to {LARGEST_FACTOR:g}")
        for name in ("dropout", "attention_dropout", "beta1", "beta2"):
            self._require(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        for name in ("seed", "split_seed"):
            self._require(name, 0 <= getattr(self, name) < 2**63, "a whole number from 0 to 2⁶³ − 1")
        for name in ("learning_rate", "muon_learning_rate"):
            valid = f"above 0 and at most {LARGEST_FACTOR:g}, for example 1e-3"
            self._require(name, 0 < getattr(self, name) <= LARGEST_FACTOR, valid)
        spec = model_spec(self.model)
        if self.attention != "auto":
            backend_spec(self.attention)
        if self.optimizer == "muon" and not spec.muon:
            able = ", ".join(name for name, other in models().items() if other.muon)
            raise RecipeError(
                f"a model whose matrices Muon updates ({able})", f"--model {self.model}", "--optimizer adamw"
            )
        self._require("min_lr_ratio", 0 <= self.min_lr_ratio <= 1, "from 0 to 1, a share of --learning-rate")
        for name in ("block_size", "vocab_size"):
            value = getattr(self, name)
            self._require(
                name, value is None or 1 <= value <= LARGEST, f"a whole number from 1 to {LARGEST:,}"
            )
            if value is not None and self.mode == "items":
                raise RecipeError(f"--mode text beside --{name}", "--mode items", "one of the two options")
        if "none" in self.speedups and len(self.speedups) > 1:
            found = " ".join(self.speedups)
            raise RecipeError("--speedups none alone, or others", found, "none, or the others without it")
        for name in ("activation", "bias", "tie_weights", "init"):
            if name not in spec.options and getattr(self, name) != getattr(Recipe, name):
                able = ", ".join(other for other, each in models().items() if name in each.options)
                found = f"--model {self.model}, which it does not change"
                raise RecipeError(f"one of the models {able} for --{name}", found, f"no --{name}")

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
    mode="text", split="90/10/0", tie_weights=True, bias=False, activation="gelu", init="gpt2",
    optimizer="adamw", lr_schedule="cosine",
    min_lr_ratio=0.1, beta1=0.9, beta2=0.99, weight_decay=0.1, grad_clip=1.0,
)  # fmt: skip
"""What nanoGPT's configurations share: https://github.com/karpathy/nanoGPT, train.py and config/."""
SHAKESPEARE = replace(
    NANOGPT,
    block_size=64,
    n_layer=4,
    n_head=4,
    n_embd=128,
    batch_size=12,
    max_steps=2000,
    learning_rate=1e-3,
    warmup_steps=100,
)
TEXT_PRESETS: dict[str, Recipe] = {
    "shakespeare": SHAKESPEARE,
    "shakespeare-fast": replace(
        SHAKESPEARE, n_layer=2, n_embd=64, activation="relu_squared", init="zero_residual", batch_size=24,
        max_steps=900, learning_rate=1.2e-2, min_lr_ratio=0.0, warmup_steps=60, eval_interval=25,
    ),
    "gpt2-124m": replace(
        NANOGPT, block_size=1024, n_layer=12, n_head=12, n_embd=768, batch_size=12, max_steps=600_000,
        learning_rate=6e-4,
        warmup_steps=2000, beta2=0.95, vocab_size=50_304, dtype="bfloat16", eval_interval=2000,
    ),
}  # fmt: skip


LONG: dict[str, Any] = {"optimizer": "muon", "dropout": 0.1, "max_steps": 8000, "eval_interval": 500}
"""What makes `names-long` of `names`: found by the experiments in docs/log.md, on names held out of the
training part."""


def recipe_for(model: Model = "transformer", preset: Preset = "names") -> Recipe:
    """The recipe to start from: the preset's, with what this model needs otherwise.

    Args:
        model: the table-like bigram and the shallow models stand, and want, a higher learning rate.
        preset: `names` is this project's own, and `names-long` takes minutes for a better loss; `makemore`
            repeats makemore's training parameters;
            `shakespeare` and `gpt2-124m` repeat nanoGPT's for long text, and `shakespeare-fast` reaches the
            first one's loss sooner (docs/text.md).
    """
    spec = model_spec(model)
    if preset in TEXT_PRESETS:
        plain = Recipe()
        others = ("activation", "bias", "tie_weights", "init")
        unknown: dict[str, Any] = {name: getattr(plain, name) for name in others if name not in spec.options}
        return replace(TEXT_PRESETS[preset], model=model, **unknown)
    if preset == "makemore":
        return Recipe(
            model=model, optimizer="adamw", learning_rate=5e-4, lr_schedule="constant", warmup_steps=0,
            weight_decay=0.01,
            decay_on="all", grad_clip=0.0, max_steps=15_000, batch_size=32, eval_interval=500,
        )  # fmt: skip
    names = Recipe(model=model, **spec.training)
    if preset == "names":
        return names
    if not spec.muon:
        raise RecipeError("--preset names-long for the transformer", f"--model {model}", "--preset names")
    return replace(names, **LONG)
