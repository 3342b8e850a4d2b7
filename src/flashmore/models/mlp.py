"""The MLP: predicts the next character from a fixed window of embeddings.

Shape letters: B batch, T positions, C channels, V vocabulary, N context.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashmore.models.config import ModelConfig


class MLP(nn.Module):
    """A window of embeddings, one tanh layer, one output layer.

    Bengio, Ducharme, Vincent and Janvin 2003, "A Neural Probabilistic Language Model"
    (https://www.jmlr.org/papers/v3/bengio03a.html), without its direct connections. The window at a position
    is the last `block_size` ids, including that position's own, padded before the start with a blank id that
    has its own learned embedding. It has one hidden layer; `n_layer` is ignored.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        V, N, C = config.vocab_size, config.block_size, config.n_embd
        self.blank = V
        self.wte = nn.Embedding(V + 1, C)
        self.dropout = nn.Dropout(config.dropout)
        self.hidden = nn.Linear(N * C, C)
        self.lm_head = nn.Linear(C, V)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (B, T) int64 to logits (B, T, V).

        Raises:
            ConfigError: T is greater than the context.
        """
        self.config.check_length(ids.size(1))
        N = self.config.block_size
        padded = F.pad(ids, (N - 1, 0), value=self.blank)  # (B, N - 1 + T)
        windows = padded.unfold(1, N, 1)  # (B, T, N), oldest id first
        x = self.dropout(self.wte(windows)).flatten(2)  # (B, T, N, C) -> (B, T, N * C)
        logits: Tensor = self.lm_head(torch.tanh(self.hidden(x)))  # (B, T, V)
        return logits
