"""The models without attention: Bigram, MLP, bag of words, RNN, GRU, LSTM and WaveNet.

Shape letters: B batch, T positions, C channels, V vocabulary, N context, L layers.
"""

from functools import partial

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
        """Map ids (B, T) to logits (B, T, V)."""
        self.config.check_length(ids.size(1))
        return F.embedding(ids, self.logits)  # (B, T, V)


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
        """Map ids (B, T) to logits (B, T, V)."""
        self.config.check_length(ids.size(1))
        N = self.config.block_size
        padded = F.pad(ids, (N - 1, 0), value=self.blank)  # (B, N - 1 + T)
        windows = padded.unfold(1, N, 1)  # (B, T, N), oldest id first
        x = self.dropout(self.wte(windows)).flatten(2)  # (B, T, N, C) -> (B, T, N * C)
        logits: Tensor = self.lm_head(torch.tanh(self.hidden(x)))  # (B, T, V)
        return logits


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
        """Map ids (B, T) to logits (B, T, V)."""
        T = ids.size(1)
        self.config.check_length(T)
        x = self.dropout(self.wte(ids) + self.wpe.weight[:T])  # (B, T, C)
        seen = torch.arange(1, T + 1, device=ids.device).unsqueeze(1)  # (T, 1)
        x = x + self.dropout(x.cumsum(1) / seen)  # (B, T, C)
        x = x + self.dropout(self.c_proj(torch.tanh(self.c_fc(x))))  # (B, T, C)
        logits: Tensor = self.lm_head(x)  # (B, T, V)
        return logits


class Recurrent(nn.Module):
    """Embeddings, one recurrent layer with a learned initial state, an output layer.

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

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (B, T) to logits (B, T, V)."""
        self.config.check_length(ids.size(1))
        logits: Tensor = self.lm_head(self.recur(self.dropout(self.wte(ids))))  # (B, T, C) -> (B, T, V)
        return logits

    def recur(self, x: Tensor) -> Tensor:
        """Map embeddings (B, T, C) to the state after each of them, (B, T, C)."""
        states: Tensor = self.core(x, self.start_state(len(x)))[0]
        return states

    def start_state(self, batch: int) -> Tensor | tuple[Tensor, Tensor]:
        """Return the state before the first id: (1, B, C), or a pair of them for an LSTM."""
        return self.start.expand(-1, batch, -1).contiguous()  # (1, 1, C) -> (1, B, C)


RNN = partial(Recurrent, core=nn.RNN)
"""The tanh recurrence of Elman 1990, "Finding Structure in Time", computed by `torch.nn.RNN`:
https://docs.pytorch.org/docs/stable/generated/torch.nn.RNN.html"""


class GRU(Recurrent):
    """The gated recurrent unit of Cho et al. 2014 (https://arxiv.org/abs/1406.1078), by `torch.nn.GRU`.

    It differs from the paper unless `reset_after` is False: the reset gate is applied after the state's
    matrix (https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, nn.GRU)

    def recur(self, x: Tensor) -> Tensor:
        """Map embeddings (B, T, C) to the state after each of them, (B, T, C)."""
        if self.config.reset_after:
            return super().recur(x)
        C, core = x.size(-1), dict(self.core.named_parameters())
        inputs = F.linear(x, core["weight_ih_l0"], core["bias_ih_l0"])  # (B, T, C) -> (B, T, 3C)
        weight, bias = core["weight_hh_l0"], core["bias_hh_l0"]
        h, states = self.start.expand(-1, len(x), -1)[0], []  # (B, C)
        for at in inputs.unbind(1):
            gates = torch.sigmoid(at[:, : 2 * C] + F.linear(h, weight[: 2 * C], bias[: 2 * C]))  # (B, 2C)
            reset, update = gates.chunk(2, dim=1)
            fresh = torch.tanh(at[:, 2 * C :] + F.linear(reset * h, weight[2 * C :], bias[2 * C :]))
            h = (1 - update) * fresh + update * h
            states.append(h)
        return torch.stack(states, dim=1)


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
        past = F.pad(x, (0, 0, self.dilation, 0))[:, : x.size(1)]  # (B, T, C) -> (B, T, C)
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
        self.convolutions = nn.ModuleList(
            GatedConvolution(C, min(2**layer, config.block_size)) for layer in range(L)
        )
        self.skips = nn.ModuleList(nn.Linear(C, C) for _ in range(L))
        self.residuals = nn.ModuleList(nn.Linear(C, C) for _ in range(L - 1))
        self.hidden = nn.Linear(C, C)
        self.lm_head = nn.Linear(C, V)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (B, T) to logits (B, T, V)."""
        self.config.check_length(ids.size(1))
        x = self.dropout(self.wte(ids))  # (B, T, C)
        gated = self.convolutions[0](x)  # (B, T, C)
        skips = self.skips[0](gated)  # (B, T, C)
        layers = zip(self.residuals, self.convolutions[1:], self.skips[1:], strict=True)
        for residual, convolution, skip in layers:
            x = x + self.dropout(residual(gated))  # (B, T, C)
            gated = convolution(x)  # (B, T, C)
            skips = skips + skip(gated)  # (B, T, C)
        logits: Tensor = self.lm_head(F.relu(self.hidden(F.relu(skips))))  # (B, T, V)
        return logits
