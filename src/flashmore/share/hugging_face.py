"""A run as a folder that Hugging Face's transformers loads as GPT-2, and back."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from flashmore.runs import Run
from flashmore.share.gpt2 import hugging_face_weights

ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu_squared": "relu2"}
"""Our names, and those of transformers."""
END = "<|endoftext|>"
"""BOS and EOS of items."""


def refuses(run: Run) -> str | None:
    """Why transformers' GPT-2 is not this model."""
    if run.model.model != "transformer":
        return f"GPT-2 is a Transformer, and this is the model {run.model.model}"
    return None


def write(run: Run, model: nn.Module, folder: Path) -> None:
    """Write config.json, model.safetensors and the tokenizer's files."""
    from transformers import GenerationConfig, GPT2Config

    sizes, items = run.model, run.text is None
    config: Any = GPT2Config(
        vocab_size=sizes.vocab_size,
        n_positions=sizes.block_size,
        n_embd=sizes.n_embd,
        n_layer=sizes.n_layer,
        n_head=sizes.n_head,
        activation_function=ACTIVATIONS[sizes.activation],
        tie_word_embeddings=sizes.tie_weights,
        bos_token_id=0 if items else None,
        eos_token_id=0 if items else None,
        architectures=["GPT2LMHeadModel"],
    )
    config.save_pretrained(folder)
    # Names end with EOS; a text ends with the context, which is all that the positions allow.
    defaults: Any = GenerationConfig
    generation = defaults(
        max_length=sizes.block_size,
        do_sample=True,
        top_k=0,
        bos_token_id=0 if items else None,
        eos_token_id=0 if items else None,
        pad_token_id=0,
    )
    generation.save_pretrained(folder)
    weights = hugging_face_weights(dict(model.state_dict()), tied=sizes.tie_weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    if run.text is None or run.text.kind == "characters":
        _tokenizer(run).save_pretrained(folder)


def _tokenizer(run: Run) -> Any:
    """A token for each character; for items, BOS first."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    items = run.text is None
    tokens = [*([END] if items else []), *run.vocabulary.characters]
    made: Any = Tokenizer(
        models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="")
    )
    # A character without a token is left out: there is no token for unknown ones.
    known = "".join(f"\\x{{{ord(each):X}}}" for each in run.vocabulary.characters)
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(f"[^{known}]"), "")])
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    special = {"bos_token": END, "eos_token": END} if items else {}
    if items:
        made.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    tokenizer: Any = PreTrainedTokenizerFast
    return tokenizer(
        tokenizer_object=made,
        model_max_length=run.model.block_size,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # an item may contain the text of the special token
        **special,
    )


def load(run: Run, folder: Path) -> AbstractContextManager[Any]:
    """The logits that transformers computes."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    del run
    quiet: Any = logging
    quiet.disable_progress_bar()
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder)
    model = loaded.eval()

    def logits(ids: Tensor) -> Tensor:
        found: Tensor = model(ids).logits
        return found

    return nullcontext(logits)
