"""Attention maps: what each head of a run's Transformer attends to.

Shape letters: L layers, H heads, T positions, D channels per head.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flashmore.backends.contract import attention
from flashmore.data.text import normalize
from flashmore.data.vocabulary import EOS, shown
from flashmore.errors import ConfigError, DataError, RunError
from flashmore.generation.load import load_model
from flashmore.models.transformer import CausalSelfAttention
from flashmore.runs import Run
from flashmore.terminal import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BACKEND = "flash"
"""The fused kernel that the maps are compared with."""
START, SPACE = "▸", "␣"
MOST_PICTURED = 64
"""Most positions in a picture."""


@dataclass(frozen=True)
class AttentionMaps:
    """The attention weights of one name or text."""

    characters: tuple[str, ...]
    """(T,) the character at each position; empty for the start of a name."""
    first: int
    """The first of these positions in the text."""
    weights: Tensor
    """(L, H, T, T) float32: row i holds how much position i attends to each position, and sums to 1."""
    difference: float
    """Largest absolute difference of these weights' outputs from the fused kernel's, in any layer."""


@torch.inference_mode()
def attention_maps(run: Run, text: str, positions: slice | None = None) -> AttentionMaps:
    """Compute the attention weights of a run's Transformer by hand, and compare them with the fused kernel.

    Args:
        run: a run of a Transformer.
        text: a name, or for a run on long text any text, at most as long as the context.
        positions: the positions to keep; a name starts at position 1, after BOS. The weights of later
            positions on earlier ones that are left out are dropped, so rows may sum to less than 1.

    Raises:
        RunError: a model without attention, or as for `generate`.
        DataError: characters outside the vocabulary, no text, or more than the context.
        ConfigError: no positions are left.
    """
    ids, characters = _ids(run, text)
    model = load_model(run, "cpu")
    layers = [module for module in model.modules() if isinstance(module, CausalSelfAttention)]
    if not layers:
        raise RunError("a run of a model with attention", f"{run.path}, a {run.model.model}", "a transformer")
    found: list[tuple[Tensor, float]] = []
    handles = [
        layer.register_forward_hook(lambda *call: found.append(_weights(*call[:2]))) for layer in layers
    ]
    model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    kept = slice(*(positions or slice(None)).indices(len(ids)))
    weights = torch.stack([each for each, _ in found])[..., kept, kept]  # (L, H, T, T)
    if not weights.numel():
        found_positions = f"{kept.start} to {kept.stop} of {len(ids)}"
        raise ConfigError("positions of the text", found_positions, f"a range within 0 to {len(ids)}")
    difference = max(difference for _, difference in found)
    return AttentionMaps(characters[kept], kept.start, weights.clone(), difference)


def _ids(run: Run, text: str) -> tuple[list[int], tuple[str, ...]]:
    if run.text is not None and run.text.kind != "characters":
        found = f"{run.path}, a run on ids without their characters"
        raise RunError("a run with characters", found, "a run on a text file")
    clean = normalize(text)
    ids, characters = run.vocabulary.encode(clean), tuple(clean)
    if run.text is None:
        ids, characters = [EOS, *ids], ("", *characters)
    else:
        ids = [number - 1 for number in ids]
    most = run.model.block_size - (run.text is None)
    if not clean or len(ids) > run.model.block_size:
        raise DataError("text that fits into the model's context", f"{len(clean)} characters", f"1 to {most}")
    return ids, characters


def _weights(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor, float]:
    """One layer's weights (H, T, T), and how far their output is from the fused kernel's."""
    x: Tensor = inputs[0]  # (1, T, C)
    module: Any = layer
    heads = (3, module.n_head, x.size(-1) // module.n_head)
    parts = module.c_attn(x).unflatten(-1, heads).unbind(-3)  # (1, T, 3C) -> 3 × (1, T, H, D)
    q, k, v = (part.transpose(1, 2) for part in parts)  # (1, T, H, D) -> (1, H, T, D)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (1, H, T, T)
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(diagonal=1)
    weights = scores.masked_fill(future, -math.inf).softmax(-1)
    fused = attention(q, k, v, backend=BACKEND, causal=True)
    return weights[0], float((weights @ v - fused).abs().max())


def figure_of(maps: Sequence[AttentionMaps]) -> "Figure":
    """Draw maps: a row per layer and a column per head, one name below the other.

    Raises:
        ConfigError: more positions than a picture can show.
    """
    longest = max(len(each.characters) for each in maps)
    if longest > MOST_PICTURED:
        found, valid = f"{longest} positions", "--positions FIRST:LAST, for example --positions 0:32"
        raise ConfigError(f"at most {MOST_PICTURED} positions in a picture", found, valid)
    from matplotlib.figure import Figure

    heads, layers = maps[0].weights.size(1), maps[0].weights.size(0)
    side = max(1.5, 0.16 * longest)
    height = (side + 0.25) * layers + 0.4
    figure = Figure((side * heads + 0.8, height * len(maps)), dpi=150, layout="constrained")
    for each, part in zip(maps, figure.subfigures(len(maps), squeeze=False)[:, 0], strict=True):
        labels = [label(character) for character in each.characters]
        title = one_line("".join(each.characters))
        part.suptitle(title, fontweight="bold", parse_math=False)
        grid = part.subplots(layers, heads, squeeze=False)
        for layer in range(layers):
            for head in range(heads):
                axes = grid[layer, head]
                axes.imshow(each.weights[layer, head].numpy(), vmin=0, vmax=1, cmap="Blues")
                axes.set_xticks(range(len(labels)), labels, fontsize=7, parse_math=False)
                axes.set_yticks(range(len(labels)), labels, fontsize=7, parse_math=False)
                axes.tick_params(length=0)
                axes.spines[:].set_visible(False)
                if layer == 0:
                    axes.set_title(f"head {head + 1}", fontsize=8)
                if head == 0:
                    axes.set_ylabel(f"layer {layer + 1}", fontsize=8)
    return figure


def label(character: str) -> str:
    """A character as a label: signs for the start and a space, the code point of invisible ones."""
    return {"": START, " ": SPACE}.get(character) or shown(character)
