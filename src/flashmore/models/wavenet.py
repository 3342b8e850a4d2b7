"""The WaveNet-style CNN: predicts the next character with dilated causal convolutions.

Shape letters: B batch, T positions, C channels, V vocabulary, L layers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashmore.models.config import ModelConfig


class GatedConvolution(nn.Module):
    """A causal convolution with two taps, now and `dilation` positions ago: tanh(filter) × sigmoid(gate).

    The convolution of kernel size 2 is computed as one matmul over both taps; positions before the start
    are zero.
    """

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.taps = nn.Linear(2 * channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        shift = min(self.dilation, x.size(1))
        past = F.pad(x[:, :-shift], (0, 0, shift, 0))  # (B, T - shift, C) -> (B, T, C)
        both = self.taps(torch.cat([past, x], dim=-1))  # (B, T, 2C) -> (B, T, 2C)
        filtered, gate = both.chunk(2, dim=-1)  # (B, T, 2C) -> 2 × (B, T, C)
        return torch.tanh(filtered) * torch.sigmoid(gate)


class WaveNet(nn.Module):
    """L gated convolutions with dilations 1, 2, 4, ..., 2^(L-1), with residual and skip connections.

    Van den Oord et al. 2016, "WaveNet: A Generative Model for Raw Audio" (https://arxiv.org/abs/1609.03499).
    The receptive field is the position itself and the 2^L - 1 before it. An embedding replaces the paper's
    first causal convolution; the head is the paper's ReLU, 1×1, ReLU, 1×1 over the sum of all skips. The last
    layer has no residual, which would be unused.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        V, C, L = config.vocab_size, config.n_embd, config.n_layer
        self.wte = nn.Embedding(V, C)
        self.dropout = nn.Dropout(config.dropout)
        self.convolutions = nn.ModuleList(GatedConvolution(C, 2**layer) for layer in range(L))
        self.skips = nn.ModuleList(nn.Linear(C, C) for _ in range(L))
        self.residuals = nn.ModuleList(nn.Linear(C, C) for _ in range(L - 1))
        self.hidden = nn.Linear(C, C)
        self.lm_head = nn.Linear(C, V)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (B, T) int64 to logits (B, T, V).

        Raises:
            ConfigError: T is greater than the context.
        """
        self.config.check_length(ids.size(1))
        x = self.dropout(self.wte(ids))  # (B, T, C)
        gated = self.convolutions[0](x)  # (B, T, C)
        skips = self.skips[0](gated)  # (B, T, C)
        for residual, convolution, skip in zip(
            self.residuals, self.convolutions[1:], self.skips[1:], strict=True
        ):
            x = x + self.dropout(residual(gated))  # (B, T, C)
            gated = convolution(x)  # (B, T, C)
            skips = skips + skip(gated)  # (B, T, C)
        logits: Tensor = self.lm_head(F.relu(self.hidden(F.relu(skips))))  # (B, T, V)
        return logits
