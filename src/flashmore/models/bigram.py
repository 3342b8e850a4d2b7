"""The Bigram: predicts the next character from the last one.

Shape letters: B batch, T positions, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashmore.models.config import ModelConfig


class Bigram(nn.Module):
    """A V × V table: row i holds the logits of the id after id i.

    The table is initialised to zero, so every character is equally likely. Its optimal loss is the entropy of
    the bigram counts (Shannon 1948, "A Mathematical Theory of Communication", section 3). It has no embedding
    and no residual, so dropout has no effect.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.logits = nn.Parameter(torch.zeros(config.vocab_size, config.vocab_size))

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (B, T) int64 to logits (B, T, V).

        Raises:
            ConfigError: T is greater than the context.
        """
        self.config.check_length(ids.size(1))
        return F.embedding(ids, self.logits)  # (B, T, V)
