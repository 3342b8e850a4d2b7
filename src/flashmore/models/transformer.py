"""The Transformer: the next character from attention over all characters so far.

Shape letters: B batch, T positions, C channels, H heads, D channels a head (C / H), V vocabulary, L layers.
"""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from flashmore.backends.contract import attention
from flashmore.backends.one_query import attend_last
from flashmore.models.config import ModelConfig


class CausalSelfAttention(nn.Module):
    """Queries, keys and values from one matrix, attention by the named backend, a projection back.

    Vaswani et al. 2017, "Attention Is All You Need" (https://arxiv.org/abs/1706.03762), section 3.2.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.backend = config.attention
        self.dropout_p = config.attention_dropout
        self.c_attn = nn.Linear(config.channels, 3 * config.channels)
        self.c_proj = nn.Linear(config.channels, config.channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C).

        Raises:
            BackendUnavailable: the backend cannot run for this device, dtype and shape.
        """
        B, T, C = x.shape
        H, D = self.heads, C // self.heads
        q, k, v = self.c_attn(x).split(C, dim=2)  # (B, T, 3C) -> 3 × (B, T, C)
        q = q.view(B, T, H, D).transpose(1, 2)  # (B, T, C) -> (B, H, T, D)
        k = k.view(B, T, H, D).transpose(1, 2)  # (B, T, C) -> (B, H, T, D)
        v = v.view(B, T, H, D).transpose(1, 2)  # (B, T, C) -> (B, H, T, D)
        dropout_p = self.dropout_p if self.training else 0.0
        y = attention(q, k, v, backend=self.backend, causal=True, dropout_p=dropout_p)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, C)  # (B, H, T, D) -> (B, T, C)
        projected: Tensor = self.c_proj(y)
        return projected

    def remember(self, x: Tensor, kept: Tensor, places: Tensor) -> Tensor:
        """Keep the keys and values of x (N, C) at some places, (N,), of `kept`; give the queries, (N, C)."""
        C = x.size(1)
        qkv: Tensor = self.c_attn(x)  # (N, 3C)
        kept.index_copy_(0, places, qkv[:, C:])
        return qkv[:, :C]

    def step(self, x: Tensor, kept: Tensor, places: Tensor) -> Tensor:
        """Map the last position alone, (B, C) to (B, C), in evaluation.

        Args:
            x: (B, C).
            kept: (N, 2C), keys and values side by side; those of the last position are written here.
            places: (T, B) int64, where in `kept` each position of each sequence stands.
        """
        heads = (self.heads, x.size(1) // self.heads)  # (H, D)
        q = self.remember(x, kept, places[-1])  # (B, C)
        k, v = F.embedding(places, kept).chunk(2, dim=2)  # (T, B, 2C) -> 2 × (T, B, C)
        q, k, v = (part.view(*part.shape[:-1], *heads) for part in (q, k, v))  # C -> H, D
        projected: Tensor = self.c_proj(attend_last(q, k, v).flatten(1))  # (B, H, D) -> (B, C)
        return projected


class FeedForward(nn.Module):
    """Four times wider, tanh GELU (Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415), and back."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.channels, 4 * config.channels)
        self.c_proj = nn.Linear(4 * config.channels, config.channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        projected: Tensor = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))  # (B, T, 4C) in between
        return projected


class Block(nn.Module):
    """Attention, then feed-forward; each normalises what it reads and is added to it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.channels)
        self.attention = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.channels)
        self.mlp = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        x = x + self.dropout(self.attention(self.ln_1(x)))
        out: Tensor = x + self.dropout(self.mlp(self.ln_2(x)))
        return out

    def step(self, x: Tensor, kept: Tensor, places: Tensor) -> Tensor:
        """Map the last position alone, (B, C) to (B, C); the rest as in `CausalSelfAttention.step`."""
        x = x + self.attention.step(self.ln_1(x), kept, places)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Transformer(nn.Module):
    """GPT-2's decoder: learned positions, L pre-norm blocks, a last normalisation, an untied output layer.

    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3, with PyTorch's
    own initialisation and an output layer without bias. At makemore's sizes (V = 27, context 16, 4 layers,
    4 heads, 64 channels) it has 204,544 parameters, each of them with a counterpart there.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        V, C = config.vocabulary_size, config.channels
        self.wte = nn.Embedding(V, C)
        self.wpe = nn.Embedding(config.context, C)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.ln_f = nn.LayerNorm(C)
        self.lm_head = nn.Linear(C, V, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (B, T) int64 to logits (B, T, V).

        Raises:
            RecipeError: T is greater than the context.
            BackendUnavailable: the attention backend cannot run for this device, dtype and shape.
        """
        T = ids.size(1)
        self.config.check_length(T)
        x = self.dropout(self.wte(ids) + self.wpe.weight[:T])  # (B, T, C)
        for block in self.blocks:
            x = block(x)  # (B, T, C)
        logits: Tensor = self.lm_head(self.ln_f(x))  # (B, T, V)
        return logits

    def prefill(self, ids: Tensor, cache: Tensor, places: Tensor) -> Tensor:
        """Map ids (B, T) int64 to logits (B, T, V) as `forward` does, and keep what `step` needs of them.

        Args:
            ids: (B, T) int64.
            cache: (L, N, 2C), where every layer's keys and values are written.
            places: (T, B) int64, where in a layer each position of each sequence is to stand.
        """
        x = self.wte(ids) + self.wpe.weight[: ids.size(1)]  # (B, T, C)
        for block, kept in zip(self._typed_blocks(), cache, strict=True):
            block.attention.remember(block.ln_1(x).flatten(0, 1), kept, places.T.flatten())
            x = block(x)  # (B, T, C)
        logits: Tensor = self.lm_head(self.ln_f(x))  # (B, T, V)
        return logits

    def step(self, ids: Tensor, cache: Tensor, places: Tensor) -> Tensor:
        """Map the last ids alone, (B,) int64, to logits (B, V): those of `forward` at the last position.

        Args:
            ids: (B,) int64, at position T - 1.
            cache: (L, N, 2C), every layer's keys and values; those of the last position are written here.
            places: (T, B) int64, where in a layer each position of each sequence stands.
        """
        x = self.wte(ids) + self.wpe.weight[len(places) - 1]  # (B, C)
        for block, kept in zip(self._typed_blocks(), cache, strict=True):
            x = block.step(x, kept, places)  # (B, C)
        logits: Tensor = self.lm_head(self.ln_f(x))  # (B, V)
        return logits

    def _typed_blocks(self) -> list[Block]:
        return cast(list[Block], self.blocks)  # a ModuleList does not say of what
