"""The names and layouts in which makemore, nanoGPT and Hugging Face store GPT-2's weights.

All three use OpenAI's names. In Hugging Face's, the matrices of a block are transposed: its `Conv1D` stores
(in, out), `nn.Linear` (out, in).
"""

import re

from torch import Tensor

_MATRIX = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
_MASK = re.compile(r"\.attn\.(masked_)?bias$")


def their_name(name: str) -> str:
    """The name of one of our Transformer's tensors in GPT-2."""
    if name == "lm_head.weight":
        return name
    return "transformer." + re.sub(r"^blocks\.", "h.", name).replace(".attention.", ".attn.")


def our_weights(theirs: dict[str, Tensor], *, transposed: bool) -> dict[str, Tensor]:
    """GPT-2's weights under our names; a causal mask that is stored with them is left out.

    Args:
        theirs: by their names, with or without `transformer.`, or `_orig_mod.` of torch.compile.
        transposed: whether the matrices of the blocks are (in, out).
    """
    found = {}
    for name, value in theirs.items():
        name = name.removeprefix("_orig_mod.").removeprefix("transformer.")
        if not _MASK.search(name):
            matrix = transposed and _MATRIX.search(name)
            ours = re.sub(r"^h\.", "blocks.", name).replace(".attn.", ".attention.")
            found[ours] = value.T.contiguous() if matrix else value
    return found


def with_biases(weights: dict[str, Tensor], *, tied: bool) -> dict[str, Tensor]:
    """Our weights with biases of zero where the model has none, and without a tied output layer."""
    found = {name: value for name, value in weights.items() if not (tied and name == "lm_head.weight")}
    for name, value in weights.items():
        if name.startswith(("blocks.", "ln_f.")) and name.endswith(".weight"):
            found.setdefault(name.removesuffix("weight") + "bias", value.new_zeros(value.size(0)))
    return found


def hugging_face_weights(weights: dict[str, Tensor], *, tied: bool) -> dict[str, Tensor]:
    """Our weights as Hugging Face stores them."""
    return {
        their_name(name): (value.T if _MATRIX.search(name) else value).contiguous()
        for name, value in with_biases(weights, tied=tied).items()
    }
