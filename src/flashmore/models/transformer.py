"""The Transformer: predicts the next character with attention over all characters so far.

Shape letters: B batch, T positions, N packed tokens, C channels, H heads, D channels per head (C / H),
V vocabulary, L layers. Everything except attention is position-wise, so (…, C) is (B, T, C) for rows of one
length and (N, C) for packed tokens.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flashmore.backends.contract import attention, load_backend
from flashmore.backends.packed import Segments, packed_attention
from flashmore.models.config import ModelConfig
from flashmore.models.kv_cache import Attend, InOrder
from flashmore.models.onednn import norm, product_and_sum
from flashmore.models.single import SingleStep

PREVIOUS = 16.0
"""The score that a head of `previous_token` gives to the position it attends to at first; others have 0."""


class Dropout(nn.Module):
    """Zero each element with probability p in training, and scale the rest by 1 / (1 - p).

    Srivastava et al. 2014, "Dropout". `nn.Dropout` queries the number of elements, which fails inside a
    gradient transform while torch.compile treats the number of tokens as dynamic; there it is written out.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Map x to the same shape."""
        if not self.training or self.p == 0:
            return x
        if torch.compiler.is_compiling():
            return torch.where(torch.rand_like(x) < self.p, 0.0, x / (1 - self.p))
        return F.dropout(x, self.p)


class CausalSelfAttention(nn.Module):
    """Causal self-attention with a fused QKV projection, the named backend, and an output projection.

    Vaswani et al. 2017, "Attention Is All You Need" (https://arxiv.org/abs/1706.03762), section 3.2.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.backend = config.attention
        load_backend(self.backend)
        self.dropout_p = config.attention_dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, segments: Segments | None = None, kept: Tensor | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C), or with segments (N, C) to (N, C); `kept` as in `remember`."""
        q, k, v = self.heads(self.c_attn(x) if kept is None else self.remember(x, kept))
        dropout_p = self.dropout_p if self.training else 0.0
        if segments is None:
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (B, T, H, D) -> (B, H, T, D)
            y = attention(q, k, v, backend=self.backend, causal=True, dropout_p=dropout_p).transpose(1, 2)
        else:
            y = packed_attention(q, k, v, segments, backend=self.backend, dropout_p=dropout_p)  # (N, H, D)
        projected: Tensor = self.c_proj(y.flatten(-2))  # (…, H, D) -> (…, C)
        return projected

    def heads(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values: (…, 3C) to 3 × (…, H, D)."""
        return qkv.view(*qkv.shape[:-1], 3, self.n_head, -1).unbind(-3)

    def remember(self, x: Tensor, kept: Tensor) -> Tensor:
        """Map (B, T, C) to queries, keys and values (B, T, 3C), and write the latter two to `kept`.

        It has room for at least T positions, which come first: (T, 2, B, C).
        """
        T, C = x.shape[1:]
        qkv: Tensor = self.c_attn(x)  # (B, T, 3C)
        kept[:T] = qkv[..., C:].view(-1, T, 2, C).permute(1, 2, 0, 3)  # (B, T, 2C) -> (T, 2, B, C)
        return qkv


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU's tanh approximation, of any shape."""
    if torch.compiler.is_compiling() and x.device.type == "cpu":
        # The same function, because (1 + tanh y) / 2 = sigmoid 2y; compiled, it takes half the time.
        return x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x * x * x))
    return F.gelu(x, approximate="tanh")


ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": gelu_tanh,
    "gelu": F.gelu,
    "relu_squared": lambda x: F.relu(x).square(),
}


class FeedForward(nn.Module):
    """Feed-forward layer with four times the width.

    GELU and its tanh approximation: Hendrycks and Gimpel 2016 (https://arxiv.org/abs/1606.08415), section 2.
    Squared ReLU: So et al. 2021, "Primer" (https://arxiv.org/abs/2109.08668), section 4.1.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activate = ACTIVATE[config.activation]
        self.gelu = {"gelu": "none", "gelu_tanh": "tanh"}.get(config.activation)
        """`approximate` of `F.gelu`, None for another activation."""
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, C) to (…, C)."""
        projected: Tensor = self.c_proj(self.activate(self.c_fc(x)))  # (…, 4C) in between
        return projected


class Block(nn.Module):
    """Attention, then feed-forward, each pre-normalised and with a residual connection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attention = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = FeedForward(config)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, segments: Segments | None = None, kept: Tensor | None = None) -> Tensor:
        """As `CausalSelfAttention.forward`."""
        x = x + self.dropout(self.attention(self.ln_1(x), segments, kept))
        out: Tensor = x + self.dropout(self.mlp(self.ln_2(x)))
        return out

    def finish(self, x: Tensor, kept: Tensor) -> Tensor:
        """Map (B, T, C) to the last position, (B, C); `kept` as in `CausalSelfAttention.remember`."""
        T = x.size(1)
        qkv = self.attention.remember(self.ln_1(x), kept)  # (B, T, 3C)
        q, k, v = (part.transpose(1, 2) for part in self.attention.heads(qkv))  # (B, T, H, D) -> (B, H, T, D)
        y = attention(q[:, :, T - 1 :], k, v, backend=self.attention.backend)  # (B, H, 1, D)
        x = x[:, -1] + self.attention.c_proj(y.flatten(1))  # (B, C)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class BlockStep:
    """One position of a block for B sequences, in evaluation mode.

    It has the parameters at hand: in a small model, calling the modules takes longer than their arithmetic.

    Args:
        block: the block.
    """

    def __init__(self, block: Block) -> None:
        self._ln_1, self._ln_2 = norm(block.ln_1), norm(block.ln_2)
        self._c_attn, self._c_fc = block.attention.c_attn.forward, block.mlp.c_fc.forward
        self._attended, self._fed = product_and_sum(block.attention.c_proj), product_and_sum(block.mlp.c_proj)
        self._activate = block.mlp.activate

    def __call__(self, x: Tensor, attend: Attend) -> Tensor:
        """Map (B, C) to (B, C)."""
        x = self._attended(x, attend(self._c_attn(self._ln_1(x))))
        return self._fed(x, self._activate(self._c_fc(self._ln_2(x))))


class Transformer(nn.Module):
    """GPT-2's decoder: learned positions, L pre-norm blocks, a final layer norm, an output layer.

    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3, with PyTorch's
    default initialisation and an output layer without bias, unless configured otherwise. At makemore's sizes
    (V = 27, context 16, 4 layers, 4 heads, 64 channels) it has the same 204,544 parameters as makemore's.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        """Whether the backward pass recomputes the activations of the blocks instead of keeping them."""
        V, C = config.vocab_size, config.n_embd
        self.wte = nn.Embedding(V, C)
        self.wpe = nn.Embedding(config.block_size, C)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(C, bias=config.bias)
        self.lm_head = nn.Linear(C, V, bias=False)
        if config.tie_weights:
            self.lm_head.weight = self.wte.weight
        if config.init == "previous_token":
            self._attend_to_previous()
        elif config.init != "torch":
            self._initialise()

    def forward(self, ids: Tensor, segments: Segments | None = None) -> Tensor:
        """Map ids (B, T) int64 to logits (B, T, V), or with segments ids (N,) to logits (N, V).

        Raises:
            ConfigError: T is greater than the context.
            BackendUnavailable: the attention backend cannot run for this device, dtype and shape.
        """
        T = ids.size(1) if segments is None else segments.longest
        self.config.check_length(T)
        positions = self.wpe.weight[:T] if segments is None else _rows_of(self.wpe.weight, segments.positions)
        x = self.dropout(_rows_of(self.wte.weight, ids) + positions)  # (…, C)
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, segments, use_reentrant=False)  # (…, C)
            else:
                x = block(x, segments)  # (…, C)
        V, multiple = self.config.vocab_size, self.config.padding_multiple
        if V % multiple == 0:
            logits: Tensor = self.lm_head(self.ln_f(x))  # (…, V)
            return logits
        wide = F.pad(self.lm_head.weight, (0, 0, 0, -V % multiple))  # (V', C)
        return F.linear(self.ln_f(x), wide)[..., :V]  # (…, V') -> (…, V)

    def _initialise(self) -> None:
        """Initialise like GPT-2, or so that every block starts as the identity.

        Radford et al. 2019, section 2.3, and GPT-2's own code; Zhang et al. 2019, "Fixup Initialization"
        (https://arxiv.org/abs/1901.09321), section 3.
        """
        small = 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            residual = ".c_proj." in name
            if self.config.init == "zero_residual":
                if residual:
                    nn.init.zeros_(parameter)
                elif name.startswith(("wte", "wpe", "lm_head")):
                    nn.init.normal_(parameter, std=0.1)  # tied logits of magnitude 0.1 √C instead of √C
            elif parameter.dim() > 1:
                nn.init.normal_(parameter, std=small if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @torch.no_grad()
    def _attend_to_previous(self) -> None:
        """Let head h of the first block, counted from 0, begin with attention to h + 1 positions before.

        At first, positions are sines and cosines in channels without tokens; those of any two positions less
        than 2F apart are orthogonal. A query's are rotated as far as it looks back, as by rotary embeddings
        (Su et al. 2021, https://arxiv.org/abs/2104.09864). With more data, training finds such previous-token
        heads by itself (Olsson et al. 2022, https://arxiv.org/abs/2209.11895). Shape letter: F frequencies.
        """
        C, D = self.config.n_embd, self.config.n_embd // self.config.n_head
        count = min(D, C // 4) // 2  # F
        if count == 0 or self.wpe.weight.is_meta:
            return
        frequencies = (torch.arange(count) + 0.5) * math.pi / count  # (F,)
        angles = torch.arange(self.config.block_size)[:, None] * frequencies  # (T, F)
        self.wte.weight[:, : 2 * count] = 0
        self.wpe.weight[:] = F.pad(
            torch.cat((angles.cos(), angles.sin()), 1) * math.sqrt(2), (0, C - 2 * count)
        )
        block: Any = self.blocks[0]
        c_attn = block.attention.c_attn
        if c_attn.bias is not None:
            c_attn.bias[: 2 * C] = 0
        c_attn.weight[: 2 * C] = 0
        queries, keys, _ = c_attn.weight.view(3, -1, D, C)[..., : 2 * count, : 2 * count]  # each (H, 2F, 2F)
        gain = math.sqrt(PREVIOUS * math.sqrt(D) / (2 * count))
        keys[:] = gain * torch.eye(2 * count)
        for distance, rotation in enumerate(queries, start=1):
            cos, sin = (distance * frequencies).cos().diag(), (distance * frequencies).sin().diag()
            rotation[:] = gain * torch.cat((torch.cat((cos, sin), 1), torch.cat((-sin, cos), 1)))

    def prefill(self, ids: Tensor, cache: Tensor) -> Tensor:
        """Map ids (B, T) int64 to the logits of the last position, (B, V), and fill the KV cache.

        The last block computes only keys and values of the other positions.

        Args:
            ids: (B, T), T at most the context.
            cache: at least (L, T, 2, B, C), the `kept` of every block.
        """
        T = ids.size(1)
        x = self.wte(ids) + self.wpe.weight[:T]  # (B, T, C)
        block: Any
        for block, kept in zip(self.blocks[:-1], cache, strict=False):
            x = block(x, kept=kept)  # (B, T, C)
        last: Any = self.blocks[-1]
        x = last.finish(x, cache[-1])  # (B, C)
        logits: Tensor = self.lm_head(self.ln_f(x))  # (B, V)
        return logits

    def step(self) -> Callable[[Tensor, int, Iterable[Attend]], Tensor]:
        """The model one position at a time for B sequences, in evaluation mode.

        Returns:
            A function from the last ids, (B,) int64, the number of positions with them, and the attention of
            each block to logits (B, V).
        """
        blocks: Any = self.blocks
        steps = [BlockStep(block) for block in blocks]
        ln_f, lm_head = norm(self.ln_f), self.lm_head.forward
        wte, wpe = self.wte.weight, self.wpe.weight

        def step(ids: Tensor, length: int, attends: Iterable[Attend]) -> Tensor:
            x = F.embedding(ids, wte) + wpe[length - 1]  # (B, C)
            for block, attend in zip(steps, attends, strict=True):
                x = block(x, attend)  # (B, C)
            return lm_head(ln_f(x))  # (B, V)

        return step

    def step_of_one(self) -> Callable[[Tensor, int, InOrder], Tensor]:
        """The same for one sequence, whose keys and values are in order."""
        return SingleStep(self)


MOST_ONE_HOT = 256
"""Most table rows for which a one-hot matmul beats Inductor's scatter-add."""


def _rows_of(table: Tensor, ids: Tensor) -> Tensor:
    """Embedding lookup: table (R, C) and ids (…) int64 to (…, C).

    Compiled for a CPU, the gradient of a lookup uses atomic adds, which are slow and nondeterministic. The
    gradient of a matmul with one-hot rows is a matmul: the same sum, deterministically.
    """
    if torch.compiler.is_compiling() and table.device.type == "cpu" and len(table) <= MOST_ONE_HOT:
        # Not F.one_hot: up to torch 2.11 it reads the ids' values, which a graph cannot.
        one_hot = ids[..., None] == torch.arange(len(table), device=ids.device)
        return one_hot.to(table.dtype) @ table
    return F.embedding(ids, table)
