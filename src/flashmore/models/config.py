"""The sizes of a model: what must be known to build it again, and nothing else."""

from dataclasses import dataclass

from flashmore.errors import ConfigError
from flashmore.specs import backend_spec, model_spec

ACTIVATIONS: tuple[str, ...] = ("gelu_tanh", "gelu", "relu_squared")
"""makemore's tanh approximation; the exact GELU; the square of ReLU."""
INITS: tuple[str, ...] = ("torch", "gpt2", "zero_residual")
"""PyTorch's own, as makemore leaves it; GPT-2's; PyTorch's own, but small embeddings, and zero for what adds
to the residual stream."""
LARGEST_SIZE = 1_000_000
"""Far beyond any model here; above it torch's own size arithmetic overflows in ways it has no message for."""
LARGEST_MULTIPLE = 4096
"""Columns that the output layer is padded to a multiple of; more only cost memory."""
LARGEST_DEPTH = 1000
"""Layers: each of them takes time and memory before its first weight."""


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides a model's parameters and its arithmetic.

    Raises:
        ConfigError: an unknown model, activation or start, a size below 1 or above `LARGEST_SIZE`, heads that
            do not divide the channels, or a dropout outside [0, 1).
    """

    model: str
    """A name of `flashmore.specs.models`."""
    vocab_size: int
    """Number of ids V; id 0 is both BOS and EOS."""
    block_size: int
    """Longest sequence T: the longest item plus one for BOS."""
    n_layer: int = 4
    """Blocks of the Transformer, dilated convolutions of the WaveNet; the other models have a fixed depth."""
    n_head: int = 4
    """Attention heads of the Transformer; they share the channels evenly."""
    n_embd: int = 64
    """Width C of embeddings and hidden layers."""
    dropout: float = 0.0
    """Probability on embeddings and residuals, in training only."""
    attention_dropout: float = 0.0
    """Probability on attention weights, in training only; it decides which kernels can run."""
    attention: str = "sdpa"
    """Name of the attention backend; never `auto` here."""
    activation: str = "gelu_tanh"
    """One of `ACTIVATIONS`: what stands between the two layers of the Transformer's feed-forward."""
    bias: bool = True
    """Whether the Transformer's linear layers and normalisations add a bias."""
    tie_weights: bool = False
    """Whether the Transformer reads and writes ids with one matrix."""
    padding_multiple: int = 1
    """The Transformer's output layer computes a multiple of so many columns; those beyond V are cut off."""
    init: str = "torch"
    """One of `INITS`: what the Transformer's weights are before training."""

    def __post_init__(self) -> None:
        spec = model_spec(self.model)
        backend_spec(self.attention)
        choices = {"activation": ACTIVATIONS, "init": INITS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                found = f"'{getattr(self, name)}'"
                raise ConfigError(f"{name} known to flashmore", found, f"one of {', '.join(known)}")
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            value, largest = getattr(self, name), LARGEST_DEPTH if name == "n_layer" else LARGEST_SIZE
            if not 1 <= value <= largest:
                raise ConfigError(
                    f"{name} of at least 1 and at most {largest:,}",
                    f"{name} = {value}",
                    f"any whole number from 1 to {largest:,}",
                )
        if not 1 <= self.padding_multiple <= LARGEST_MULTIPLE:
            found = f"padding_multiple = {self.padding_multiple}"
            raise ConfigError("a sensible padding_multiple", found, f"from 1 to {LARGEST_MULTIPLE:,}")
        for name in ("dropout", "attention_dropout"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ConfigError(f"{name} in [0, 1)", f"{name} = {value}", "0 for none, 0.1 for a little")
        if spec.attends and self.n_embd % self.n_head:
            divisors = [str(n) for n in range(1, self.n_embd + 1) if self.n_embd % n == 0]
            raise ConfigError(
                "heads that divide the channels",
                f"{self.n_head} heads and {self.n_embd} channels",
                f"for {self.n_embd} channels: {', '.join(divisors)} heads",
            )

    def check_length(self, positions: int) -> None:
        """Refuse a sequence that is longer than the model's context.

        Raises:
            ConfigError: `positions` is greater than `context`.
        """
        if positions > self.block_size:
            raise ConfigError(
                f"a sequence within the model's context of {self.block_size}",
                f"{positions} positions",
                f"1 to {self.block_size} positions, BOS included, or a model with a longer context",
            )
