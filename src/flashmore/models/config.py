"""The sizes and options from which a model can be rebuilt."""

from dataclasses import dataclass
from typing import get_args

from flashmore.errors import ConfigError
from flashmore.specs import Activation, Init, backend_spec, model_spec

ACTIVATIONS: tuple[str, ...] = get_args(Activation)
LARGEST_SIZE = 1_000_000
"""Largest size; far above it torch's size arithmetic overflows without an error."""
LARGEST_MULTIPLE = 4096
"""Upper bound of `padding_multiple`; larger values only cost memory."""
LARGEST_DEPTH = 1000
"""Most layers: each takes time and memory to construct."""


@dataclass(frozen=True)
class ModelConfig:
    """Everything that determines a model's parameters and arithmetic.

    Raises:
        ConfigError: an unknown model, activation or initialisation, a size below 1 or above `LARGEST_SIZE`,
            `n_embd` not a multiple of `n_head`, or a dropout outside [0, 1).
    """

    model: str
    """A name of `flashmore.specs.models`."""
    vocab_size: int
    """V; for items, id 0 is both BOS and EOS."""
    block_size: int
    """Context length T: the longest item plus BOS, or a window of a long text."""
    n_layer: int = 4
    """Blocks of the Transformer, dilated convolutions of the WaveNet."""
    n_head: int = 4
    """Attention heads of the Transformer; `n_embd` must be a multiple of it."""
    n_embd: int = 64
    """Width C of embeddings and hidden layers."""
    dropout: float = 0.0
    """Dropout probability on embeddings and residuals, in training only."""
    attention_dropout: float = 0.0
    """Dropout probability on attention weights, in training only; not all kernels support it."""
    attention: str = "sdpa"
    """Name of the attention backend; never `auto` here."""
    activation: str = "gelu_tanh"
    """One of `ACTIVATIONS`; this and the following are for the Transformer."""
    bias: bool = True
    """Whether linear layers and layer norms have biases."""
    tie_weights: bool = False
    """Whether token embedding and output layer share weights."""
    padding_multiple: int = 1
    """Pad the output layer to a multiple of this; columns beyond V are sliced off."""
    init: str = "torch"
    """One of `flashmore.specs.Init`."""
    reset_after: bool = True
    """For the GRU: whether the reset gate is applied after the state's matrix, as in PyTorch and cuDNN, or
    before it, as in the paper and makemore. Training uses the former, which has a kernel."""

    def __post_init__(self) -> None:
        spec = model_spec(self.model)
        backend_spec(self.attention)
        for name, known in (("activation", ACTIVATIONS), ("init", get_args(Init))):
            if getattr(self, name) not in known:
                found = f"'{getattr(self, name)}'"
                raise ConfigError(f"a known {name}", found, f"one of {', '.join(known)}")
        largest = dict.fromkeys(("vocab_size", "block_size", "n_head", "n_embd"), LARGEST_SIZE)
        largest |= {"n_layer": LARGEST_DEPTH, "padding_multiple": LARGEST_MULTIPLE}
        for name, most in largest.items():
            if not 1 <= getattr(self, name) <= most:
                found = f"{name} = {getattr(self, name)}"
                raise ConfigError(f"{name} of 1 to {most:,}", found, f"any whole number from 1 to {most:,}")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                found = f"{name} = {getattr(self, name)}"
                raise ConfigError(f"{name} in [0, 1)", found, "0 for no dropout, or for example 0.1")
        if spec.attends and self.n_embd % self.n_head:
            divisors = [str(n) for n in range(1, self.n_embd + 1) if self.n_embd % n == 0]
            raise ConfigError(
                "n_embd divisible by n_head",
                f"{self.n_head} heads and {self.n_embd} channels",
                f"for {self.n_embd} channels: {', '.join(divisors)} heads",
            )

    def check_length(self, positions: int) -> None:
        """Refuse a sequence longer than the model's context, with a ConfigError."""
        if positions > self.block_size:
            wanted = f"a sequence within the model's context of {self.block_size}"
            valid = f"1 to {self.block_size} positions, BOS included, or a model with a longer context"
            raise ConfigError(wanted, f"{positions} positions", valid)
