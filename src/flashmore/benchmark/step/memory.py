"""What a training step of the Transformer takes in memory, estimated before anything of its size is made.

Counted are the large things: what the forward pass keeps for the backward pass, and the tensors that exist
beside it at the worst moment. Tests hold the estimate against measured peaks.
"""

from flashmore.config import TrainConfig
from flashmore.models.config import ModelConfig
from flashmore.rules.call import AttentionCall
from flashmore.specs import backends, usable

KEPT_CHANNELS = 20
"""Numbers a position, layer and channel that the forward pass keeps: two normalisations, q, k, v, attention's
output and its copy, the sums, and 4 + 4 in the feed-forward part."""
WORKING_CHANNELS = 12
"""The same once, for the widest operation at work."""
WORKING_SCORES = 3
"""(B, H, T, T) matrices at work beside the kept ones: the gradient by the weights, by the scores, a copy."""
TILE_BYTES = 2**20
"""Scratch memory of a fused kernel for each CPU thread, at most."""


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
        backend: a name; `sdpa` is taken for a fused kernel where PyTorch can choose one, else for `math`.
        model_config: the model's sizes; T is its context.
        config: the batch size, the dtype and the dropout on the weights.
        device: `cpu`, `cuda` or `mps`.
        threads: CPU threads.
        item: bytes of a number in float32; 8 for the same step in float64.
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
