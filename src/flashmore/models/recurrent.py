"""RNN, GRU and LSTM: predict the next character from a recurrent state.

Shape letters: B batch, T positions, C channels, V vocabulary.
"""

import torch
from torch import Tensor, nn

from flashmore.models.config import ModelConfig


class Recurrent(nn.Module):
    """Base class: embeddings, one recurrent layer with a learned initial state, an output layer.

    As in makemore it has one layer; `n_layer` is ignored. The learned initial state is initialised to zero.
    There is no residual, so dropout applies only to the embeddings.
    """

    def __init__(self, config: ModelConfig, core: type[nn.RNN] | type[nn.GRU] | type[nn.LSTM]) -> None:
        super().__init__()
        self.config = config
        V, C = config.vocab_size, config.n_embd
        self.start = nn.Parameter(torch.zeros(1, 1, C))
        self.wte = nn.Embedding(V, C)
        self.dropout = nn.Dropout(config.dropout)
        self.core = core(C, C, batch_first=True)
        self.lm_head = nn.Linear(C, V)

    def start_state(self, batch: int) -> Tensor | tuple[Tensor, Tensor]:
        """Return the state before the first id: (1, B, C), or a pair of them for an LSTM."""
        return self.start.expand(-1, batch, -1).contiguous()  # (1, 1, C) -> (1, B, C)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (B, T) int64 to logits (B, T, V).

        Raises:
            ConfigError: T is greater than the context.
        """
        self.config.check_length(ids.size(1))
        states = self.recur(self.dropout(self.wte(ids)))  # (B, T, C)
        logits: Tensor = self.lm_head(states)  # (B, T, V)
        return logits

    def recur(self, x: Tensor) -> Tensor:
        """Map embeddings (B, T, C) to the state after each of them, (B, T, C)."""
        states: Tensor = self.core(x, self.start_state(x.size(0)))[0]
        return states


class RNN(Recurrent):
    """The tanh recurrence of Elman 1990, "Finding Structure in Time", computed by `torch.nn.RNN`.

    https://docs.pytorch.org/docs/stable/generated/torch.nn.RNN.html
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, nn.RNN)


class GRU(Recurrent):
    """The gated recurrent unit of Cho et al. 2014 (https://arxiv.org/abs/1406.1078), by `torch.nn.GRU`.

    It differs from the paper (https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html): the reset
    gate is applied after the state's matrix, not before it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, nn.GRU)


class LSTM(Recurrent):
    """Long short-term memory, Hochreiter and Schmidhuber 1997, computed by `torch.nn.LSTM`.

    https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html. Its state is two tensors, the output
    and the memory cell, both with a learned initial value. On the CPU it stays in float32 under autocast.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, nn.LSTM)
        self.start_cell = nn.Parameter(torch.zeros(1, 1, config.n_embd))

    def start_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return output and memory cell before the first id, (1, B, C) each."""
        start, cell = self.start.expand(-1, batch, -1), self.start_cell.expand(-1, batch, -1)  # (1, B, C)
        return start.contiguous(), cell.contiguous()

    def recur(self, x: Tensor) -> Tensor:
        """Map embeddings (B, T, C) to the state after each of them, (B, T, C)."""
        if x.device.type != "cpu":
            return super().recur(x)
        # autocast selects oneDNN's 16-bit LSTM; on CPUs without it torch raises instead of falling back
        with torch.autocast("cpu", enabled=False):
            return super().recur(x)
