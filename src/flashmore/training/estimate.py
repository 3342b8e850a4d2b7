"""What a training step costs each of several ranks: memory and what it sends, counted; its time, predicted.

The model of the time is arithmetic at a constant rate, plus bytes at a constant bandwidth and a constant
latency for each message, of which a share is hidden behind the arithmetic. docs/scaling.md compares it
with measurements.

P parameters, N ranks, L layers, T positions, C channels.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from flashmore.config import TrainConfig
from flashmore.memory import kept_bytes
from flashmore.models.config import ModelConfig
from flashmore.models.registry import without_values
from flashmore.parallel import Ranks
from flashmore.training.optimizers import muon_matrices
from flashmore.training.resolve import TRAINED_BYTES

BYTES = TRAINED_BYTES // 4
"""Of a weight, and of its gradient and each moment."""
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20
"""Bytes of the messages of DistributedDataParallel.
https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html"""


@dataclass(frozen=True)
class Hardware:
    """What one rank attains while training."""

    tflops: float
    """Arithmetic, in 10¹² floating-point operations per second."""
    bandwidth_gb_s: float
    """10⁹ bytes per second that it sends, while it receives as many."""
    latency_us: float
    """Microseconds of a message without content."""
    overlap: float
    """Share of the communication that is hidden behind arithmetic, from 0 to 1."""


@dataclass(frozen=True)
class Cost:
    """What one step costs one rank."""

    memory: dict[str, int]
    """Bytes by what they hold."""
    offloaded: dict[str, int]
    """Bytes of these in CPU memory."""
    checkpoint: int
    """Bytes of the copy of weights and optimizer that rank 0 keeps in CPU memory to write them."""
    flop: float
    """Floating-point operations of the forward and the backward pass."""
    beside: float
    """Share of them that the rank computes while it communicates, the backward pass for most; 0 if it does so
    afterwards."""
    sent: float
    """Bytes that it sends to other ranks."""
    messages: int
    """One after the other."""

    def seconds(self, hardware: Hardware) -> "Seconds":
        """Predict the time of the step."""
        compute = self.flop / (1e12 * hardware.tflops)
        sending = self.sent / (1e9 * hardware.bandwidth_gb_s)
        communication = sending + 1e-6 * self.messages * hardware.latency_us
        hidden = hardware.overlap * min(communication, self.beside * compute)
        return Seconds(compute, communication, hidden)


@dataclass(frozen=True)
class Seconds:
    """The predicted time of a step."""

    compute: float
    communication: float
    hidden: float
    """Of the communication, behind arithmetic."""

    @property
    def step(self) -> float:
        """The whole step."""
        return self.compute + self.communication - self.hidden


def cost_of(config: TrainConfig, model_config: ModelConfig, ranks: Ranks, tokens: float) -> Cost:
    """Count what a step of the Transformer costs one rank.

    Args:
        config: resolved, with `parallel` either `ddp` or `fsdp`; with `device` cpu, ranks use Gloo.
        ranks: the number of ranks.
        tokens: real positions in a batch, on average.

    Raises:
        ConfigError: a batch that the slices, or slices that the ranks, cannot share equally.
    """
    slices = ranks.slices(config)
    model = without_values(model_config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    sharded = ranks.size > 1 and config.parallel == "fsdp"
    memory = dict(_memory(config, model_config, ranks, len(slices), sizes))
    checkpoint = 3 * BYTES * sum(sizes.values())
    if config.optimizer == "muon":
        single = BYTES * sum(parameter.numel() for parameter in muon_matrices(model).values())
        memory["optimizer"] -= single
        checkpoint -= single
    memory["activations"] = kept_bytes(
        model_config, config.batch_size // slices[0][1], model_config.block_size,
        checkpointing=config.activation_checkpointing,
    )  # fmt: skip
    offloaded = ("weights", "gradients", "optimizer") if sharded and config.cpu_offload else ()
    sent, messages = _sent(config, ranks, len(slices), sizes)
    return Cost(
        {name: size for name, size in memory.items() if name not in offloaded},
        {name: memory[name] for name in offloaded},
        checkpoint,
        _flop(config, model_config, sizes) * tokens / ranks.size,
        _beside(config, len(slices), sharded=sharded),
        sent,
        messages,
    )


def _in_blocks(sizes: dict[str, int]) -> int:
    return sum(size for name, size in sizes.items() if name.startswith("blocks."))


def _memory(
    config: TrainConfig, model_config: ModelConfig, ranks: Ranks, slices: int, sizes: dict[str, int]
) -> Iterator[tuple[str, int]]:
    """Bytes that do not depend on the batch, with AdamW's two moments of every parameter."""
    P, N = sum(sizes.values()), ranks.size
    sharded = N > 1 and config.parallel == "fsdp"
    for name, tensors in (("weights", 1), ("gradients", 1), ("optimizer", 2)):
        yield name, BYTES * tensors * (-(-P // N) if sharded else P)
    if sharded:
        blocks = _in_blocks(sizes)
        root, block = P - blocks, blocks // model_config.n_layer
        # A block in use, and the next, which is gathered meanwhile. The root stays until the backward pass.
        yield "gathered", BYTES * (root + min(2, model_config.n_layer) * block)
        yield "whole gradients", BYTES * (P if slices > 1 else max(root, block))
    elif config.slices:
        # Each slice's gradient, stacked, in the order of sending, and as received.
        yield "message buffers", 4 * BYTES * slices * P
    elif "compile" in config.speedups and N > 1:
        yield "message buffers", 2 * BYTES * P  # the gradient with the loss, and their sum


def _sent(config: TrainConfig, ranks: Ranks, slices: int, sizes: dict[str, int]) -> tuple[float, int]:
    """Bytes that a rank sends in a step, and how many messages one after the other."""
    N, P = ranks.size, sum(sizes.values())
    others, share = N - 1, (N - 1) / N
    if not others:
        return 0.0, 0
    if config.parallel == "fsdp":  # all-gathers of every slice, reduce-scatters of the last
        blocks = _in_blocks(sizes)
        units = 1 + len({name.split(".")[1] for name in sizes if name.startswith("blocks.")})
        gathered = slices * (P + blocks)  # blocks in the forward and in the backward pass, the root once
        passes = 2 if config.device == "cpu" else 1  # Gloo makes an all-reduce of a reduce-scatter
        return share * BYTES * (gathered + passes * P), others * (slices * (2 * units - 1) + passes * units)
    if config.slices:  # an all-to-all of all slices, an all-gather of the sum
        return share * BYTES * (slices + 1) * (P + 1), 2 * others
    if "compile" in config.speedups:
        return 2 * share * BYTES * (P + 1), 2 * others
    buckets = 1 + max(0, math.ceil((BYTES * P - FIRST_BUCKET) / BUCKET))
    return 2 * share * BYTES * P, 2 * others * buckets


def _beside(config: TrainConfig, slices: int, *, sharded: bool) -> float:
    """The share of the arithmetic that can hide communication."""
    if sharded:  # gathers in both passes
        return 1.0
    if config.slices or "compile" in config.speedups:  # after the gradient is complete
        return 0.0
    return (3 / 4 if config.activation_checkpointing else 2 / 3) / slices


def _flop(config: TrainConfig, model_config: ModelConfig, sizes: dict[str, int]) -> float:
    """Floating-point operations of forward and backward pass, per token.

    6 for each parameter in a matrix product and 12·L·T·C for attention, its masked half included: Chowdhery
    et al. 2022, "PaLM", appendix B (https://arxiv.org/abs/2204.02311), as in nanoGPT. Checkpointing computes
    the forward pass of the blocks a second time.
    """
    looked_up = ("wpe.weight",) if model_config.tie_weights else ("wpe.weight", "wte.weight")
    multiplied = sum(size for name, size in sizes.items() if name not in looked_up)
    attention = 4 * model_config.n_layer * model_config.block_size * model_config.n_embd
    again = 2 * _in_blocks(sizes) + attention if config.activation_checkpointing else 0
    return 6 * multiplied + 3 * attention + again
