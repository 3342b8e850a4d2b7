"""The bag of words: predicts the next character from the average of all characters so far.

Shape letters: B batch, T positions, C channels, V vocabulary.
"""

import torch
from torch import Tensor, nn

from flashmore.models.config import ModelConfig


class BoW(nn.Module):
    """A causal average of embeddings, then a tanh MLP, each with a residual connection.

    As in makemore, this is attention with uniform weights over all earlier positions. Order enters only
    through the position embeddings. It has one average and one MLP; `n_layer` is ignored.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        V, C = config.vocab_size, config.n_embd
        self.wte = nn.Embedding(V, C)
        self.wpe = nn.Embedding(config.block_size, C)
        self.dropout = nn.Dropout(config.dropout)
        self.c_fc = nn.Linear(C, C)
        self.c_proj = nn.Linear(C, C)
        self.lm_head = nn.Linear(C, V)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (B, T) int64 to logits (B, T, V).

        Raises:
            ConfigError: T is greater than the context.
        """
        T = ids.size(1)
        self.config.check_length(T)
        x = self.dropout(self.wte(ids) + self.wpe.weight[:T])  # (B, T, C)
        seen = torch.arange(1, T + 1, device=ids.device).unsqueeze(1)  # (T, 1)
        x = x + self.dropout(x.cumsum(1) / seen)  # (B, T, C)
        x = x + self.dropout(self.c_proj(torch.tanh(self.c_fc(x))))  # (B, T, C)
        logits: Tensor = self.lm_head(x)  # (B, T, V)
        return logits
