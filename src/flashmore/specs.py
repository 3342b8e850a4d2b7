"""The registries of models and attention backends: names, code locations and capabilities.

There are no others. Command line choices, rules, tables, plots and memory estimates are derived from them.
Importing this module does not import torch; the code of a model or backend is loaded on first use.

Other packages add their own with entry points: see CONTRIBUTING.md.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal, TypeVar

from tyro.constructors import PrimitiveConstructorSpec

from flashmore.errors import ConfigError
from flashmore.rules import (
    CAUTIONS,
    DTYPES,
    RULES,
    AttentionCall,
    Reason,
    Rule,
    everywhere,
    on,
    rules_of_contract,
)

Activation = Literal["gelu_tanh", "gelu", "relu_squared"]
"""makemore's tanh approximation; the exact GELU; the square of ReLU."""
Init = Literal["torch", "gpt2", "zero_residual", "previous_token"]
"""PyTorch's defaults, as in makemore; GPT-2's; PyTorch's defaults with small embeddings and zero-initialised
residual projections; PyTorch's defaults with heads that attend to the previous positions."""
EVERY_OPTION = frozenset(
    ("n_layer", "n_head", "n_embd", "dropout", "activation", "bias", "tie_weights", "init",
     "padding_multiple",
     "attention", "attention_dropout")
)  # fmt: skip
"""Model options that not every model has."""


class _Spec:
    target: str

    def load(self) -> Any:
        """Import the code.

        Raises:
            ConfigError: the module or attribute does not exist.
        """
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"the code at {self.target}", str(error), "an installed package") from error


@dataclass(frozen=True)
class ModelSpec(_Spec):
    """One model."""

    name: str
    target: str
    """`module:attribute` of a callable from a `ModelConfig` to an `nn.Module`."""
    summary: str
    """A sentence for people."""
    options: frozenset[str] = frozenset({"n_embd", "dropout"})
    """Model options that apply to it; the others are refused."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of `TrainConfig`'s defaults."""
    packed: bool = False
    """`forward` supports packed items without padding."""
    kv_cache: bool = False
    """It has `prefill`, `step` and `step_of_one` as `Transformer` has them: generation with a KV cache."""
    muon: bool = False
    """Muon can update the matrices in its `blocks`."""
    page: bool = False
    """`flashmore page` can compute it in a browser: share/page/models.js has it."""
    recurrent_kernel: bool = False
    """It uses PyTorch's recurrent kernel, which is neither compiled nor captured in a CUDA graph."""
    widest: Callable[[Any], int] = lambda config: 4 * config.n_embd
    """Width of its widest activation, per position, of a `ModelConfig`; so is the next."""
    kept: Callable[[Any], int] = lambda config: 30 * config.n_layer * config.n_embd
    """Rough number of activations kept for the backward pass, per position, without logits."""

    @property
    def attends(self) -> bool:
        """Whether it uses an attention backend."""
        return "attention" in self.options

    def has(self, name: str) -> bool:
        """Whether the model has this option or capability, such as `n_layer` or `kv_cache`."""
        return name in self.options or bool(getattr(self, name, False))


@dataclass(frozen=True)
class BackendSpec(_Spec):
    """One attention backend."""

    name: str
    target: str
    """`module:attribute` of a `flashmore.backends.contract.Compute` function."""
    summary: str
    """A sentence for people."""
    on_device: Mapping[str, str] = field(default_factory=dict)
    """The summary for devices on which it differs."""
    kernel: bool = True
    """It is a single kernel, not a choice among several."""
    fused: bool = False
    """It does not materialise the (T, S) attention weights."""
    sdp_backend: str | None = None
    """The member of `torch.nn.attention.SDPBackend` that it forces."""
    compiled: bool = False
    """Its first call of each shape compiles a kernel, for seconds, so `explain` asks the rules alone."""
    documentation: str = ""
    """Its address."""
    operator: str | None = None
    """Common substring of torch's names of its operators and backward nodes, in lower case without _."""
    rules: tuple[Rule, ...] = ()
    """Every reason why it cannot run, besides those of `flashmore.rules`."""
    cautions: tuple[Rule, ...] = ()
    """Caveats if it can run, besides those of `flashmore.rules.CAUTIONS`."""
    color: str = "#8a6d5a"
    marker: str = "X"
    """Marker in plots; colour and marker distinguish the backends."""

    @property
    def materializes_scores(self) -> bool:
        """Whether it materialises the (T, S) attention weights."""
        return self.kernel and not self.fused

    @property
    def every_rule(self) -> tuple[Rule, ...]:
        """Every reason why it cannot run, those that it shares included."""
        shared = rules_of_contract(self.name) if self.kernel and self.sdp_backend is None else ()
        return (*shared, *RULES, *self.rules)

    def reasons_against(self, call: AttentionCall) -> tuple[Reason, ...]:
        """Every reason why it cannot compute `call`; empty if it can."""
        return _reasons(self.name, self.every_rule, call)

    def cautions_about(self, call: AttentionCall) -> tuple[Reason, ...]:
        """Caveats of using it for `call`; empty if none are known."""
        return _reasons(self.name, (*CAUTIONS, *self.cautions), call)


def _reasons(name: str, rules: tuple[Rule, ...], call: AttentionCall) -> tuple[Reason, ...]:
    return tuple(rule.filled(call) for rule in rules if rule.breaks_on(name, call))


_MODELS = (
    ModelSpec(
        "bigram",
        "flashmore.models.simple:Bigram",
        "a table of the next character given the last one",
        page=True,
        options=frozenset(),
        training={"learning_rate": 5e-2, "weight_decay": 0.0, "ngram_smoothing": 0.0, "ngram_items": 0.0},
        kept=lambda _: 0,
    ),
    ModelSpec(
        "mlp",
        "flashmore.models.simple:MLP",
        "one hidden layer on a window of embeddings (Bengio et al. 2003)",
        page=True,
        widest=lambda config: max(4, config.block_size) * config.n_embd,
        kept=lambda config: (30 + 2 * config.block_size) * config.n_embd,
    ),
    ModelSpec(
        "bow",
        "flashmore.models.simple:BoW",
        "the mean of all previous characters: attention with equal weights",
        page=True,
    ),
    ModelSpec(
        "rnn",
        "flashmore.models.simple:RNN",
        "a recurrent state (Elman 1990)",
        page=True,
        recurrent_kernel=True,
    ),
    ModelSpec(
        "gru",
        "flashmore.models.simple:GRU",
        "a gated recurrent state (Cho et al. 2014)",
        page=True,
        recurrent_kernel=True,
    ),
    ModelSpec(
        "lstm",
        "flashmore.models.simple:LSTM",
        "a gated recurrent state and a memory cell (Hochreiter and Schmidhuber 1997)",
        page=True,
        recurrent_kernel=True,
    ),
    ModelSpec(
        "wavenet",
        "flashmore.models.simple:WaveNet",
        "dilated causal convolutions (van den Oord et al. 2016)",
        page=True,
        options=frozenset({"n_layer", "n_embd", "dropout"}),
    ),
    ModelSpec(
        "transformer",
        "flashmore.models.transformer:Transformer",
        "GPT-2's blocks of attention and feed-forward layers (Radford et al. 2019)",
        page=True,
        options=EVERY_OPTION,
        training={
            "activation": "relu_squared",
            "batch_size": 128,
            "learning_rate": 6e-3,
            "weight_decay": 0.1,
            "max_steps": 1500,
        },
        packed=True,
        kv_cache=True,
        muon=True,
        widest=lambda config: max(4, 2 * config.n_layer) * config.n_embd,
    ),
)


_SDPA = "flashmore.backends.sdpa"
_DOCS = "https://docs.pytorch.org/docs/stable"
_SDPA_DOCS = f"{_DOCS}/generated/torch.nn.functional.scaled_dot_product_attention.html"
_BACKENDS = (
    BackendSpec(
        "manual",
        "flashmore.backends.manual:manual",
        "matmul, mask, softmax and matmul; the whole (L, S) matrix is written to memory",
        color="#d1495b",
        marker="o",
    ),
    BackendSpec(
        "sdpa",
        f"{_SDPA}:chosen_by_pytorch",
        "PyTorch's choice among the following",
        kernel=False,
        color="#6b8e23",
        marker="P",
        documentation=_SDPA_DOCS,
    ),
    BackendSpec(
        "math",
        f"{_SDPA}:math",
        "PyTorch's unfused attention; 16-bit inputs are computed in float32",
        sdp_backend="MATH",
        color="#c27c0e",
        marker="s",
        documentation=_SDPA_DOCS,
    ),
    BackendSpec(
        "flash",
        f"{_SDPA}:flash",
        "FlashAttention-2, in tiles",
        {"cpu": "PyTorch's tiled CPU kernel, not the FlashAttention of GPUs"},
        fused=True,
        sdp_backend="FLASH_ATTENTION",
        operator="flashattention",
        color="#2f7ed8",
        marker="^",
        documentation=_SDPA_DOCS,
    ),
    BackendSpec(
        "efficient",
        f"{_SDPA}:efficient",
        "memory-efficient attention, in tiles",
        fused=True,
        sdp_backend="EFFICIENT_ATTENTION",
        operator="efficientattention",
        color="#0f9b8e",
        marker="D",
        documentation=_SDPA_DOCS,
    ),
    BackendSpec(
        "cudnn",
        f"{_SDPA}:cudnn",
        "cuDNN's fused attention, in tiles",
        fused=True,
        sdp_backend="CUDNN_ATTENTION",
        operator="cudnnattention",
        color="#9468d6",
        marker="v",
        documentation=_SDPA_DOCS,
    ),
    BackendSpec(
        "flex",
        "flashmore.backends.flex:flex",
        "FlexAttention, in tiles; the first call with a shape compiles a kernel, which takes seconds",
        fused=True,
        compiled=True,
        documentation=f"{_DOCS}/nn.attention.flex_attention.html",
        color="#b5548f",
        marker="p",
        rules=(
            Rule(
                on("cpu", "flex") + on("mps", "flex"),
                lambda call: call.needs_grad,
                "FlexAttention has no backward pass on {call.device}",
                "use it without gradients, or on CUDA",
            ),
            Rule(
                everywhere("flex"),
                lambda call: call.dropout_p > 0,
                "dropout_p = {call.dropout_p}, which FlexAttention does not support",
                "set dropout_p=0.0, or apply dropout after attention",
            ),
            Rule(
                everywhere("flex"),
                lambda call: call.mask is not None and call.mask_dtype not in ("bool", *DTYPES),
                "a mask of {call.mask_dtype}",
                "use bool, or {call.dtype}",
            ),
            Rule(
                on("cpu", "flex") + on("mps", "flex"),
                lambda call: call.dtype == "float64",
                "the dtype is float64, which FlexAttention does not support on {call.device}",
                "use float32, bfloat16 or float16",
            ),
            Rule(
                on("cuda", "flex"),
                lambda call: min(call.head_dim, call.value_dim) < 16,
                "head dimensions {call.head_dim} and {call.value_dim}; the kernel needs at least 16",
                "pad them with zeros",
            ),
            Rule(
                on("cuda", "flex"),
                lambda call: call.capability < (7, 0),
                "the GPU has compute capability {call.capability[0]}.{call.capability[1]}",
                "torch.compile needs 7.0 (Volta) or newer; math runs on older ones",
            ),
        ),
    ),
    BackendSpec(
        "varlen",
        "flashmore.backends.varlen:varlen",
        "FlashAttention-2 on packed sequences, with varlen_attn",
        fused=True,
        documentation=f"{_DOCS}/nn.attention.varlen.html",
        color="#5b7083",
        marker="<",
        rules=(
            Rule(
                on("cpu", "varlen") + on("mps", "varlen"),
                lambda _: True,
                "varlen_attn is a CUDA kernel",
                "use flash, or a CUDA device",
            ),
            Rule(
                on("cuda", "varlen"),
                lambda call: call.dropout_p > 0,
                "dropout_p = {call.dropout_p}, which varlen_attn does not support",
                "set dropout_p=0.0, or use flash",
            ),
        ),
    ),
)

Spec = TypeVar("Spec", ModelSpec, BackendSpec)


@cache
def models() -> Mapping[str, ModelSpec]:
    """Every model by name, the simplest first; those of other packages follow.

    Raises:
        ConfigError: a package registers something else, or a name twice.
    """
    return _registered(_MODELS, ModelSpec, "flashmore.models")


@cache
def backends() -> Mapping[str, BackendSpec]:
    """Every attention backend by name, `manual` first; those of other packages follow.

    Raises:
        ConfigError: a package registers something else, or a name twice.
    """
    return _registered(_BACKENDS, BackendSpec, "flashmore.backends")


def model_spec(name: str) -> ModelSpec:
    """Look up a model.

    Raises:
        ConfigError: there is no model with this name.
    """
    return _named(name, models(), "a model of flashmore")


def backend_spec(name: str) -> BackendSpec:
    """Look up an attention backend.

    Raises:
        ConfigError: there is no backend with this name.
    """
    return _named(name, backends(), "an attention backend")


def usable(call: AttentionCall) -> tuple[str, ...]:
    """The backends that no rule excludes, in the order of `backends`."""
    return tuple(name for name, spec in backends().items() if not spec.reasons_against(call))


def _registered(ours: tuple[Spec, ...], kind: type[Spec], group: str) -> dict[str, Spec]:
    found = {spec.name: spec for spec in ours}
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        where = f"the entry point {entry.name} = {entry.value} of {group}"
        try:
            spec = entry.load()
        except Exception as error:
            raise ConfigError(
                f"{where} to be imported", repr(error), "a fixed version of that package, or none"
            ) from error
        if not isinstance(spec, kind) or spec.name in found:
            raise ConfigError(
                f"a new {kind.__name__} at {where}", repr(spec), "a fixed version of that package, or none"
            )
        found[spec.name] = spec
    return found


def _named(name: str, known: Mapping[str, Spec], wanted: str) -> Spec:
    if name not in known:
        raise ConfigError(wanted, f"'{name}'", f"one of {', '.join(known)}")
    return known[name]


def _choices(names: tuple[str, ...]) -> PrimitiveConstructorSpec[str]:
    """Command line choices: the names registered when the program starts."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{" + ",".join(names) + "}",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
        choices=names,
    )


Model = Annotated[str, _choices(tuple(models()))]
"""A name in `models`."""
Attention = Annotated[str, _choices(("auto", *backends()))]
"""A name in `backends`, or `auto`."""
Kernel = Annotated[str, _choices(tuple(name for name, spec in backends().items() if spec.kernel))]
"""Name of a backend that is a single kernel."""
