"""A run as a GGUF file of the architecture `gpt2`, as llama.cpp reads it.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from flashmore.models.registry import build
from flashmore.runs import Run
from flashmore.share.gpt2 import with_biases
from flashmore.share.hugging_face import END

_NAMES = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_1": "attn_norm",
    "attention.c_attn": "attn_qkv",
    "attention.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "ln_f": "output_norm",
    "lm_head": "output",
}


def refuses(run: Run) -> str | None:
    """Why llama.cpp's GPT-2 is not this model, or cannot have its characters."""
    if run.model.model != "transformer":
        return f"llama.cpp has no architecture for the model {run.model.model}"
    if run.model.activation != "gelu_tanh":
        return f"llama.cpp's GPT-2 computes --activation gelu_tanh, and this model {run.model.activation}"
    if run.text is not None and run.text.kind != "characters":
        return "the characters of its ids are unknown"
    if odd := [each for each in run.vocabulary.characters if not (each.isascii() and each.isprintable())]:
        return f"a GPT-2 vocabulary has a token per byte, and {odd[0]!r} is not printable ASCII"
    return None


def _their_name(name: str) -> str:
    layer, rest = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)", name).groups()  # type: ignore[union-attr]
    part, _, kind = rest.rpartition(".")
    return f"{'' if layer is None else f'blk.{layer}.'}{_NAMES[part]}.{kind}"


def write(run: Run, model: nn.Module, folder: Path) -> None:
    """Write model.gguf."""
    from gguf import GGUFWriter, TokenType

    sizes, items = run.model, run.text is None
    writer: Any = GGUFWriter(folder / "model.gguf", "gpt2")
    writer.add_context_length(sizes.block_size)
    writer.add_embedding_length(sizes.n_embd)
    writer.add_feed_forward_length(4 * sizes.n_embd)
    writer.add_block_count(sizes.n_layer)
    writer.add_head_count(sizes.n_head)
    writer.add_layer_norm_eps(1e-5)
    tokens = [
        *([END] if items else []),
        *("Ġ" if each == " " else each for each in run.vocabulary.characters),
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    kinds = [TokenType.CONTROL] * items + [TokenType.NORMAL] * len(run.vocabulary.characters)
    writer.add_token_types(kinds)
    writer.add_token_merges([])
    if items:
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(0)
        writer.add_add_bos_token(True)
    for name, value in with_biases(dict(model.state_dict()), tied=sizes.tie_weights).items():
        writer.add_tensor(_their_name(name), value.detach().numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load(run: Run, folder: Path) -> AbstractContextManager[Any]:
    """Our model with the tensors that the `gguf` package reads from the file: it computes nothing itself."""
    from gguf import GGUFReader

    reader: Any = GGUFReader(folder / "model.gguf")
    theirs = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    model = build(run.model, seed=0)
    weights = {
        name: theirs[
            _their_name("wte.weight" if run.model.tie_weights and name == "lm_head.weight" else name)
        ]
        for name in model.state_dict()
    }
    model.load_state_dict(weights)
    return nullcontext(model.eval())
