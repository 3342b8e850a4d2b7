"""Typed training options: the same classes, presets and defaults for Python and the command line.

It imports no torch, so that `flashmore train --help` answers at once.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeAlias,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
from tyro.conf import Positional, arg

from flashmore.errors import ConfigError, option_of, require_valid
from flashmore.specs import Activation, Attention, Init, Model, backend_spec, model_spec, models

Preset = Literal[
    "names", "names-long", "makemore", "shakespeare", "shakespeare-fast",
    "gpt2-124m", "gpt2-355m", "gpt2-774m", "gpt2-1558m",
]  # fmt: skip

LARGEST = 10**15
"""Upper bound of any count; larger values are typos."""
MOST_THREADS = 4096
MOST_TEACHERS = 9
TEACHERS_SHARE = 0.7
"""Share of the teachers' predictions in the targets; the rest are the characters that follow."""
SAMPLED_TEMPERATURE = 0.9
"""Of the training loss with items that are sampled."""
LARGEST_FACTOR = 1e38
"""Upper bound of optimizer settings, which are used in float32."""
BY_PRESET: Any = None
"""Placeholder default; `TrainConfig` fills it in from the preset and the model, or leaves it open."""

_BUILT_IN = "(default: the built-in names; with --mode text and --vocab-size, random ids)"

if TYPE_CHECKING:
    OpenInt: TypeAlias = int
    OpenFloat: TypeAlias = float
    OpenOptimizer: TypeAlias = Literal["adamw", "muon"]
    OpenInit: TypeAlias = Init
else:
    _HINT = "(default: {})".format
    _OPEN = {"help_behavior_hint": lambda value: _HINT("fitted to the data" if value == "None" else value)}
    OpenInt = Annotated[int | None, arg(metavar="INT", **_OPEN)]
    OpenFloat = Annotated[float | None, arg(metavar="FLOAT", **_OPEN)]
    OpenOptimizer = Annotated[Literal["adamw", "muon"] | None, arg(metavar="{adamw,muon}", **_OPEN)]
    OpenInit = Annotated[Init | None, arg(metavar="{" + ",".join(get_args(Init)) + "}", **_OPEN)]
"""An option that a preset for items leaves open (None) until `flashmore.training.fit` has seen them."""


@dataclass(frozen=True)
class DataConfig:
    """The data and its split."""

    file: Positional[Annotated[Path | None, arg(metavar="FILE", help_behavior_hint=_BUILT_IN)]] = None
    """Text file with one item per line, a table with --column, a folder of such files, a prepared list, or
    `-` for stdin.
    With --mode text: one long text, or a `.bin` file of 16-bit token ids, as `flashmore prepare` writes."""
    column: str | None = None
    """Column with the items, in a CSV, TSV, JSON, JSON Lines or Parquet file."""
    weight: str | None = None
    """With --column: column with the weights of the items, such as frequencies."""
    mode: Literal["items", "text"] = BY_PRESET
    """`items`: each line is one sequence. `text`: one long text, split into windows."""
    encoding: str = "utf-8"
    """Encoding of the file, such as utf-8 or latin-1."""
    split: str = BY_PRESET
    """Percentages for train/validation/test, or `makemore` for its split. A text is split by position."""
    split_seed: int = 3407
    """Seed of the random split. It does not depend on --seed."""
    block_size: int | None = BY_PRESET
    """With --mode text: window length in characters. If omitted, 256."""
    vocab_size: int | None = BY_PRESET
    """With --mode text and a `.bin` file: vocabulary size. If omitted, the largest id + 1."""

    @property
    def read_once(self) -> str:
        """What the file is if it can be read only once; else nothing."""
        file = self.file
        if file == Path("-"):
            return "stdin, which can be read only once"
        with suppress(OSError):  # reading it will tell
            if file is not None and file.exists() and not (file.is_file() or file.is_dir()):
                return f"{file}, a pipe or a device, which can be read only once"
        return ""


@dataclass(frozen=True)
class ModelOptions:
    """The model; vocabulary and context follow from the data."""

    model: Model = "transformer"
    """Model to train."""
    n_layer: OpenInt = BY_PRESET
    """Number of layers (transformer, wavenet)."""
    n_head: int = BY_PRESET
    """Number of attention heads; --n-embd must be a multiple of it."""
    n_embd: OpenInt = BY_PRESET
    """Width of embeddings and hidden layers."""
    activation: Activation = BY_PRESET
    """Activation of the transformer's MLP: tanh-approximated GELU, exact GELU, or squared ReLU."""
    bias: bool = BY_PRESET
    """Biases in the transformer's linear layers and layer norms."""
    tie_weights: bool = BY_PRESET
    """Share the weights of the transformer's token embedding and output layer."""
    init: OpenInit = BY_PRESET
    """Initialisation of the transformer: PyTorch's, GPT-2's, PyTorch's with zero residual projections, or
    PyTorch's with heads in the first layer that attend to the previous characters."""
    dropout: OpenFloat = BY_PRESET
    """Dropout probability on embeddings and residual branches."""
    attention: Attention = "auto"
    """Attention backend; `auto` measures which is fastest on this machine."""
    attention_dropout: float = 0.0
    """Dropout probability on attention weights. Some fused kernels do not support it."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer, its schedule and the number of steps."""

    max_steps: OpenInt = BY_PRESET
    """Number of optimizer steps."""
    batch_size: OpenInt = BY_PRESET
    """Number of items, or windows of a long text, per step."""
    learning_rate: OpenFloat = BY_PRESET
    """Peak learning rate."""
    optimizer: OpenOptimizer = BY_PRESET
    """AdamW, or Muon for the weight matrices of the transformer's blocks and AdamW for the rest."""
    muon_learning_rate: float = BY_PRESET
    """Peak learning rate of the parameters updated by Muon."""
    lr_schedule: Literal["constant", "cosine"] = BY_PRESET
    """Learning rate after warm-up: constant, or cosine decay to --min-lr-ratio of the peak."""
    min_lr_ratio: float = BY_PRESET
    """Final learning rate of the cosine schedule, as a fraction of the peak."""
    warmup_steps: OpenInt = BY_PRESET
    """Number of linear warm-up steps."""
    beta1: float = 0.9
    """AdamW's decay rate for the first moment."""
    beta2: float = BY_PRESET
    """AdamW's decay rate for the second moment."""
    ngram_smoothing: OpenFloat = BY_PRESET
    """Weight of an n-gram model's predictions in the targets, to reduce overfitting; 0 disables it."""
    ngram_items: OpenFloat = BY_PRESET
    """Share of each training batch that is sampled from an n-gram model of the training items, to reduce
    overfitting; 0 disables it."""
    teacher: tuple[str, ...] = ()
    """Distillation: finished runs on the same items, whose mean predictions become part of the targets."""
    teachers: OpenInt = BY_PRESET
    """Distillation: number of teachers to train first, with other seeds; they are kept next to the run. Needs
    one process, and a file that can be read more than once."""
    weight_decay: OpenFloat = BY_PRESET
    """Decoupled weight decay."""
    decay_on: Literal["all", "matrices"] = BY_PRESET
    """Parameters with weight decay: all, as in makemore, or all except biases and norm gains."""
    grad_clip: float = BY_PRESET
    """Maximum gradient norm; 0 disables clipping."""
    seed: int = 3407
    """Random seed for the initial weights, the data order and dropout."""
    slices: int = 0
    """Cut each batch into this many slices and add up their gradients in a fixed order. With the same threads
    and speed-ups, the run is then the same, bit for bit, for every number of CPU processes that divides it.
    0: --grad-accum slices for each process."""


@dataclass(frozen=True)
class RunConfig:
    """Device, precision, speed-ups, evaluation and logging."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to train on; `auto` uses a GPU if there is one."""
    dtype: Literal["float32", "bfloat16", "float16"] = BY_PRESET
    """Precision of matrix products; 16-bit types run under autocast."""
    speedups: tuple[str, ...] = ("auto",)
    """Names from `flashmore speedups`, or one of `auto`, `exact`, `all` and `none`.
    `auto`: those worth their start-up time in this run. `exact`: those with the same gradients."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """Under torchrun: `ddp` keeps a copy of the model in each process, `fsdp` shards it over them. `auto`
    shards if a copy does not fit in memory."""
    grad_accum: int = 1
    """Split each batch into this many parts and accumulate their gradients, which needs less memory."""
    activation_checkpointing: bool = False
    """Recompute the activations of the transformer's blocks in the backward pass, which needs less memory."""
    cpu_offload: bool = False
    """With --parallel fsdp on GPUs: keep the sharded weights and the optimizer in CPU memory."""
    threads: int = 0
    """CPU threads, at most the number of CPUs; 0 keeps PyTorch's default."""
    eval_interval: OpenInt = BY_PRESET
    """Steps between evaluations on the validation split. Each also saves a checkpoint."""
    patience: int = BY_PRESET
    """Stop after this many evaluations without a lower validation loss; 0 disables early stopping."""
    log_interval: int = 10
    """Steps between lines in metrics.jsonl."""
    save_seconds: float = 60.0
    """Maximum seconds of training between checkpoints: what is lost if the process is killed."""
    keep: int = 2
    """Number of newest checkpoints to keep; for each, the one with the lowest validation loss until then is
    kept as well."""
    on_save_error: Literal["continue", "stop"] = "continue"
    """If a checkpoint or the metrics cannot be saved: keep training and try again, or stop."""
    samples_every: int = 0
    """Steps between samples of generated names in metrics.jsonl, for `flashmore page`; 0 writes none."""
    log_to: tuple[str, ...] = ()
    """Trackers that receive the metrics: any of tensorboard, wandb, mlflow and trackio."""

    @property
    def threads_here(self) -> int:
        """`threads`, capped at this machine's number of CPUs: the run may come from a larger machine.

        The cap counts all CPUs, not those available to this process now, so that it is the same whenever a
        run is resumed.
        """
        return usable_threads(self.threads)


# Dataclass fields start with those of the last base, and the file is the first argument.
@dataclass(frozen=True)
class TrainConfig(RunConfig, OptimConfig, ModelOptions, DataConfig):
    """All options of a training run.

    Omitted options default to the preset's or the model's value: `TrainConfig(model="gru")` is what
    `flashmore train --model gru` trains. `dataclasses.replace` keeps all other values; for the defaults of
    another preset or model, create a new config.

    Raises:
        ConfigError: a value out of range, or incompatible options.
    """

    preset: Preset = "names"
    """Set of defaults for the other options.
    `names`: fitted to the data. `names-long`: a lower loss in a few minutes, by distillation from three runs.
    `makemore`: as in makemore. `shakespeare`, `gpt2-124m`: as in nanoGPT, for one long text; `gpt2-355m`,
    `gpt2-774m` and `gpt2-1558m` are the larger sizes of GPT-2.
    `shakespeare-fast`: the loss of `shakespeare` in less time."""

    def __post_init__(self) -> None:
        file: Any = self.file
        self._set("file", Path(file) if isinstance(file, str) else file)
        for name in ("speedups", "log_to", "teacher"):
            value = getattr(self, name)
            self._set(name, (value,) if isinstance(value, str | Path) else value)
        teacher: Any = self.teacher
        if isinstance(teacher, list | tuple):  # `./run/` is `run`
            paths = (str(Path(each)) if isinstance(each, str | Path) else each for each in teacher)
            self._set("teacher", tuple(paths))
        for name in ("model", "preset"):
            self._require_type(name)
        values = _defaults(self.preset, self.model)
        if self.preset == "names" and self.mode in (None, "items"):
            values |= dict.fromkeys(name for name in OPEN if name not in PRESETS["names"])
        for name, value in values.items():
            if getattr(self, name) is None:
                self._set(name, value)
        for field in fields(self):
            self._require_type(field.name)
        self._require_ranges()
        self._require_combinations()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _require_type(self, name: str) -> None:
        """Refuse a value that does not have the type of its field, as msgspec converts it from JSON."""
        value = getattr(self, name)
        if name != "file":
            try:
                value = msgspec.convert(value, _types()[name])
            except (msgspec.ValidationError, OverflowError) as error:
                found = f"{value!r}: {error}"
                raise ConfigError(
                    f"a value of the right type for {name}", found, _described(_types()[name])
                ) from None
        elif not isinstance(value, Path | None):
            raise ConfigError("file, a path", f"{value!r}", "a pathlib.Path, a string, or None")
        self._set(name, value)

    def _require_ranges(self) -> None:
        for name, (least, most) in COUNTS.items():
            self._require(name, lambda n: least <= n <= most, f"a whole number from {least} to {most:,}")  # noqa: B023
        for name in ("grad_clip", "weight_decay"):
            self._require(name, lambda x: 0 <= x <= LARGEST_FACTOR, f"a number from 0 to {LARGEST_FACTOR:g}")
        for name in ("dropout", "attention_dropout", "beta1", "beta2", "ngram_smoothing", "ngram_items"):
            self._require(name, lambda x: 0 <= x < 1, "at least 0 and below 1")
        for name in ("learning_rate", "muon_learning_rate"):
            valid = f"above 0 and at most {LARGEST_FACTOR:g}, for example 1e-3"
            self._require(name, lambda x: 0 < x <= LARGEST_FACTOR, valid)
        valid = f"above 0 and at most {LARGEST_FACTOR:g} seconds, for example 60"
        self._require("save_seconds", lambda x: 0 < x <= LARGEST_FACTOR, valid)
        self._require("min_lr_ratio", lambda x: 0 <= x <= 1, "from 0 to 1, a share of --learning-rate")

    def _require(self, name: str, fits: Callable[[Any], bool], valid: str) -> None:
        value = getattr(self, name)
        require_valid(name, value, value is None or fits(value), valid)

    def _require_combinations(self) -> None:
        spec = model_spec(self.model)
        if self.attention != "auto":
            backend_spec(self.attention)
        if self.optimizer == "muon" and not spec.muon:
            able = ", ".join(name for name, other in models().items() if other.muon)
            raise ConfigError(
                f"a model that supports Muon ({able})", f"--model {self.model}", "--optimizer adamw"
            )
        if self.mode == "items" and PRESETS[self.preset].get("mode") == "text":
            found = f"--preset {self.preset}, which needs --mode text"
            raise ConfigError(
                "a preset for --mode items", found, "--mode text, or --preset names or makemore"
            )
        if self.mode == "text" and self.preset == "names-long":
            valid = "--mode items, or --preset shakespeare-fast"
            raise ConfigError(
                "a preset for --mode text", "--preset names-long, which needs --mode items", valid
            )
        if self.weight is not None:
            if self.column is None:
                raise ConfigError("--column with --weight", "no --column", "use both, or omit --weight")
            for name in ("ngram_smoothing", "ngram_items"):
                if getattr(self, name):
                    found = "--weight, which n-grams do not support"
                    raise ConfigError(f"{option_of(name)} without weights", found, "one of the two options")
        if self.teacher or self.teachers:
            self._require_teachable()
        if self.mode == "text" and self.file == Path("-"):
            raise ConfigError(
                "a text file with --mode text", self.read_once, "the path of a text file, or --mode items"
            )
        if "none" in self.speedups and len(self.speedups) > 1:
            found = " ".join(self.speedups)
            raise ConfigError("--speedups none without other names", found, "none, or only the other names")
        defaults = _defaults(self.preset, self.model)
        for name, needed, present in ineffective(self):
            if name not in SIZES and getattr(self, name) not in (
                None,
                defaults.get(name, getattr(TrainConfig, name)),
            ):
                raise without_effect(name, needed, present)

    def _require_teachable(self) -> None:
        if len(self.teacher) > MOST_TEACHERS:
            found = f"{len(self.teacher)}"
            raise ConfigError(f"at most {MOST_TEACHERS} runs with --teacher", found, "fewer of them")
        others = ("ngram_smoothing", "teachers") if self.teacher else ()
        for name in ("weight", "ngram_items", *others):
            if getattr(self, name):
                raise ConfigError(
                    f"{self.teacher_option} without {option_of(name)}", "both", "one of the two options"
                )
        if self.teachers and self.read_once:
            raise ConfigError("a file of items with --teachers", self.read_once, "omit --teachers")

    @property
    def teacher_option(self) -> str:
        """The option that names or makes teachers; empty without them."""
        return "--teacher" if self.teacher else "--teachers" if self.teachers else ""

    @property
    def distilled(self) -> bool:
        """Whether the model learns from other runs."""
        return bool(self.teacher_option)

    @property
    def soft_weight(self) -> float:
        """Share of the soft targets, of n-grams or of teachers, in the loss."""
        return TEACHERS_SHARE if self.distilled else self.ngram_smoothing

    @property
    def loss_temperature(self) -> float:
        """What logits are divided by in the training loss alone, after which predictions are less confident.

        Trained on few items, models are too confident; this is temperature scaling (Guo et al. 2017,
        https://arxiv.org/abs/1706.04599, section 4.2) by a constant, since there are too few items to fit it.
        """
        return SAMPLED_TEMPERATURE if self.ngram_items else 1.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, for a run's config.json."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        file = None if self.file is None else str(self.file)
        lists = {name: list(getattr(self, name)) for name in ("speedups", "log_to", "teacher")}
        return values | {"file": file, **lists}


COUNTS: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("n_layer", "n_head", "n_embd", "block_size", "vocab_size"), (1, LARGEST)),
    **dict.fromkeys(
        ("max_steps", "batch_size", "eval_interval", "log_interval", "grad_accum", "keep"), (1, LARGEST)
    ),
    **dict.fromkeys(("warmup_steps", "patience", "samples_every", "slices"), (0, LARGEST)),
    "threads": (0, MOST_THREADS),
    "teachers": (0, MOST_TEACHERS),
    **dict.fromkeys(("seed", "split_seed"), (0, 2**63 - 1)),
}
"""Smallest and largest value of every integer option."""
DEFAULTS: dict[str, Any] = {
    "mode": "items", "split": "80/10/10", "block_size": None, "vocab_size": None,
    "n_layer": 4, "n_head": 4, "n_embd": 64,
    "activation": "gelu_tanh", "bias": True, "tie_weights": False, "init": "torch", "dropout": 0.0,
    "max_steps": 2000, "batch_size": 32, "learning_rate": 2e-3, "optimizer": "adamw",
    "muon_learning_rate": 0.02, "lr_schedule": "cosine", "min_lr_ratio": 0.01, "warmup_steps": 100,
    "beta2": 0.99, "ngram_smoothing": 0.0, "ngram_items": 0.0, "teachers": 0,
    "weight_decay": 0.01, "decay_on": "matrices", "grad_clip": 1.0, "dtype": "float32",
    "eval_interval": 250, "patience": 0,
}  # fmt: skip
"""Defaults of every preset and model."""
SIZES = ("attention", "attention_dropout", "n_head", "n_layer", "n_embd", "dropout")
"""Options that a config may hold for other models, so that `replace(config, model=…)` compares models."""
MODEL_OPTIONS = (*SIZES, "activation", "bias", "tie_weights", "init")
"""Options that not every model has."""
OPEN = (
    "n_layer", "n_embd", "dropout", "init", "optimizer", "max_steps", "batch_size", "learning_rate",
    "ngram_smoothing", "ngram_items", "weight_decay", "warmup_steps", "eval_interval", "teachers",
)  # fmt: skip
"""Options that the preset `names` fits to the items; `names-long` fits those that are open in it."""
CHANGEABLE = (
    "parallel", "grad_accum", "activation_checkpointing", "cpu_offload",
    "save_seconds", "keep", "on_save_error",
)  # fmt: skip
"""Options of how steps are computed and saved, of which a resumed run may have others. They change results by
no more than rounding, except that `grad_accum` makes other slices, for which dropout draws other numbers."""
NANOGPT: dict[str, Any] = {
    "mode": "text", "split": "90/10/0",
    "tie_weights": True, "bias": False, "activation": "gelu", "init": "gpt2",
    "min_lr_ratio": 0.1, "weight_decay": 0.1,
}  # fmt: skip
"""Settings common to nanoGPT's configurations: https://github.com/karpathy/nanoGPT, train.py and config/."""
SHAKESPEARE: dict[str, Any] = {
    **NANOGPT, "block_size": 64, "n_embd": 128, "batch_size": 12, "max_steps": 2000, "learning_rate": 1e-3,
}  # fmt: skip
GPT2: dict[str, Any] = {
    **NANOGPT, "block_size": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768, "batch_size": 12,
    "max_steps": 600_000, "learning_rate": 6e-4, "warmup_steps": 2000, "beta2": 0.95,
    "vocab_size": 50_304, "dtype": "bfloat16", "eval_interval": 2000,
}  # fmt: skip
"""nanoGPT's GPT-2. The larger ones differ in size alone (Radford et al. 2019, table 2)."""
PRESETS: dict[Preset, dict[str, Any]] = {
    "names": {"patience": 5, "teachers": 0},
    # Found by the experiments in docs/log.md, on names held out of the training part.
    "names-long": {
        "optimizer": "muon", "dropout": BY_PRESET, "ngram_smoothing": BY_PRESET, "ngram_items": BY_PRESET,
        "teachers": BY_PRESET, "max_steps": 4000, "eval_interval": 250,
    },
    "makemore": {
        "activation": "gelu_tanh", "max_steps": 15_000, "batch_size": 32, "learning_rate": 5e-4,
        "lr_schedule": "constant", "warmup_steps": 0, "weight_decay": 0.01, "decay_on": "all",
        "grad_clip": 0.0, "eval_interval": 500,
    },
    "shakespeare": SHAKESPEARE,
    "shakespeare-fast": {
        **SHAKESPEARE, "n_layer": 2, "n_embd": 64, "activation": "relu_squared", "init": "zero_residual",
        "optimizer": "muon", "batch_size": 24, "max_steps": 600, "learning_rate": 1.5e-2,
        "muon_learning_rate": 0.04, "min_lr_ratio": 0.0, "warmup_steps": 60, "eval_interval": 25,
    },
    "gpt2-124m": GPT2,
    "gpt2-355m": {**GPT2, "n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt2-774m": {**GPT2, "n_layer": 36, "n_head": 20, "n_embd": 1280},
    "gpt2-1558m": {**GPT2, "n_layer": 48, "n_head": 25, "n_embd": 1600},
}  # fmt: skip
"""Overrides of `DEFAULTS` and, in presets for items, of the model's defaults (`ModelSpec.training`)."""


def usable_threads(threads: int) -> int:
    """A number of threads that was asked for, capped at this machine's number of CPUs.

    Raises:
        ConfigError: it is out of range.
    """
    fewest, most = COUNTS["threads"]
    require_valid("threads", threads, fewest <= threads <= most, f"a whole number from {fewest} to {most:,}")
    return min(threads, os.cpu_count() or 1)


def _defaults(preset: Preset, model: Model) -> dict[str, Any]:
    """The defaults of all optional values.

    Raises:
        ConfigError: an unknown preset or model, or a preset for other models.
    """
    if preset not in PRESETS:
        raise ConfigError("a preset", f"'{preset}'", ", ".join(PRESETS))
    spec, chosen = model_spec(model), PRESETS[preset]
    if chosen.get("optimizer") == "muon" and not spec.muon:
        other = "shakespeare" if chosen.get("mode") == "text" else "names"
        raise ConfigError(
            f"--preset {preset} with --model transformer", f"--model {model}", f"--preset {other}"
        )
    own = {} if "mode" in chosen else spec.training  # nanoGPT's numbers are the same for every model
    values = {**DEFAULTS, **own, **chosen}
    return values | {
        name: DEFAULTS[name] for name in MODEL_OPTIONS if name in DEFAULTS and name not in spec.options
    }


def ineffective(config: TrainConfig) -> Iterator[tuple[str, str, str]]:
    """Every option without an effect, what it would need, and what the config has instead."""
    for name in MODEL_OPTIONS:
        able = [model for model, spec in models().items() if name in spec.options]
        if config.model not in able and (name, config.attention) != ("attention", "auto"):
            yield name, f"--model {' or '.join(able)}", f"--model {config.model}"
    if not model_spec(config.model).muon:
        yield "muon_learning_rate", "--optimizer muon", f"--model {config.model}"
    elif config.optimizer not in (None, "muon"):
        yield "muon_learning_rate", "--optimizer muon", f"--optimizer {config.optimizer}"
    if config.lr_schedule != "cosine":
        yield "min_lr_ratio", "--lr-schedule cosine", f"--lr-schedule {config.lr_schedule}"
    if config.mode == "text":
        for name in ("column", "ngram_smoothing", "ngram_items", "teacher", "teachers"):
            yield name, "--mode items", "--mode text"
    else:
        for name in ("block_size", "vocab_size"):
            yield name, "--mode text", "--mode items"
    if config.mode == "text" or config.split == "makemore":
        present = "--mode text" if config.mode == "text" else "--split makemore"
        yield "split_seed", "a split by percentages, such as 80/10/10", present
    if config.slices:
        yield "grad_accum", "no --slices", f"--slices {config.slices}"
    if config.model != "transformer":
        yield "activation_checkpointing", "--model transformer", f"--model {config.model}"
    if config.parallel == "ddp":
        yield "cpu_offload", "--parallel fsdp", "--parallel ddp"
    if config.file is None:
        yield "encoding", "a text file", "the built-in names"
        yield "column", "a file with columns", "the built-in names"
        yield "weight", "a file with columns", "the built-in names"


def without_effect(name: str, needed: str, present: str) -> ConfigError:
    """The error for an option that `ineffective` names."""
    found = f"it has no effect with {present}"
    return ConfigError(f"{option_of(name)} with {needed}", found, f"{needed}, or omit {option_of(name)}")


@cache
def _types() -> dict[str, Any]:
    return get_type_hints(TrainConfig)


def _described(hint: Any) -> str:
    if isinstance(hint, UnionType) or get_origin(hint) is Union:
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    if get_origin(hint) is Literal:
        return ", ".join(map(str, get_args(hint)))
    return f"a value of type {getattr(hint, '__name__', hint)}"
