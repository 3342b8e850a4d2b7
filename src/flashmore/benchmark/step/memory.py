"""Estimates the memory of a Transformer's training step before allocating it.

Counts the tensors saved for the backward pass, and the working tensors at the peak. Tests compare the
estimate with measured peaks.
"""

from flashmore.config import TrainConfig
from flashmore.models.config import ModelConfig
from flashmore.rules import AttentionCall
from flashmore.specs import backends, usable

KEPT_CHANNELS = 20
"""Numbers per position, layer and channel saved for backward: two layer norms, q, k, v, attention's output
and its copy, the sums, and 4 + 4 in the feed-forward."""
WORKING_CHANNELS = 12
"""The same for the working tensors of the widest operation, once."""
WORKING_SCORES = 3
"""Working (B, H, T, T) matrices besides the saved ones: gradients of the weights and the scores, a copy."""
TILE_BYTES = 2**20
"""Most scratch memory of a fused kernel per CPU thread."""


def weights_bytes(model_config: ModelConfig) -> int:
    """Weights, gradients and AdamW's two moments."""
    C, V = model_config.n_embd, model_config.vocab_size
    parameters = model_config.n_layer * (12 * C * C + 13 * C) + (2 * V + model_config.block_size + 2) * C
    return 4 * 4 * parameters


def activation_bytes(
    backend: str,
    model_config: ModelConfig,
    config: TrainConfig,
    *,
    device: str,
    threads: int = 1,
    item: int = 4,
) -> int:
    """Estimate the peak bytes of one step beyond the weights, their gradients and the moments.

    Args:
        backend: a name; `sdpa` counts as a fused kernel if PyTorch can choose one, else as `math`.
        model_config: the model's sizes; T is its context.
        config: the batch size, the dtype and the dropout on the weights.
        device: `cpu`, `cuda` or `mps`.
        threads: CPU threads.
        item: bytes per float32 number; 8 for the same step in float64.
    """
    B, H, T, C = config.batch_size, model_config.n_head, model_config.block_size, model_config.n_embd
    positions = B * T
    total = positions * C * (model_config.n_layer * KEPT_CHANNELS + WORKING_CHANNELS) * item
    total += 3 * positions * model_config.vocab_size * item  # logits, their softmax, their gradient
    size = (B, H, T, C // H)
    call = AttentionCall(size, size, size, config.dtype, device, dropout_p=config.attention_dropout)
    fused = [name for name, spec in backends().items() if spec.fused]
    if backend in fused or (backend == "sdpa" and any(name in fused for name in usable(call))):
        return total + threads * TILE_BYTES
    kept = working = item
    if backend == "manual" and config.dtype != "float32":
        # Autocast computes the softmax in float32 on a GPU, in 16 bits on a CPU; the values meet 16 bits.
        kept, working = (2, 2) if device == "cpu" else (item + 2, item)
    if config.attention_dropout:
        kept += working + 1  # what is left of the weights, and which ones are
    scores = B * H * T * T * (model_config.n_layer * kept + WORKING_SCORES * working)
    return total + scores + model_config.n_layer * T * T
