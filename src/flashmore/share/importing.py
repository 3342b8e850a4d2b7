"""Models of other projects as runs: makemore's and nanoGPT's checkpoints, and Hugging Face's GPT-2.

Pickled files are read with `torch.load(weights_only=True)`, which executes no code from them.
"""

import math
import pickle
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from flashmore.config import MODEL_OPTIONS, TrainConfig
from flashmore.data.items import MAKEMORE
from flashmore.errors import ConfigError, RunError
from flashmore.files import open_input
from flashmore.models.config import ModelConfig
from flashmore.models.registry import build, count_parameters, layout
from flashmore.runs import Checkpoint, Run, Settings, State, locked
from flashmore.runs.checkpoint import differences, layout_of
from flashmore.runs.settings import versions_here
from flashmore.share.gpt2 import our_weights
from flashmore.share.hugging_face import ACTIVATIONS
from flashmore.share.makemore import MAKEMORE_MODELS, Found, Weights
from flashmore.specs import model_spec
from flashmore.strict_json import read
from flashmore.training.corpus import Corpus, open_datasets, read_corpus
from flashmore.training.dataset import Dataset
from flashmore.training.result import TrainResult
from flashmore.training.trainer import evaluate

LARGEST_CONFIG = 2**20
"""Most bytes read of a Hugging Face config.json."""
LARGEST_TOKENIZER = 2**26
"""Most bytes read of a tokenizer.json."""


def import_model(source: Path, data: Path, out: Path, *, n_head: int | None = None) -> Run:
    """Make a run of a model that was trained elsewhere.

    Args:
        source: makemore's `model.pt`, nanoGPT's `ckpt.pt`, or a folder of a Hugging Face GPT-2.
        data: what it was trained on: the file of names, or the text, or nanoGPT's `.bin` file.
        out: the new run's folder.
        n_head: attention heads of a Transformer of makemore, which does not store them; None means 4.

    Returns:
        The run, without optimizer state: everything but resuming training works.

    Raises:
        RunError: a file that is none of these, would execute code, or is damaged; or another model.
        ConfigError: the data is not what the model was trained on, or `out` is occupied.
        DataError: the data cannot be read.
    """
    found = _hugging_face(source) if source.is_dir() else _checkpoint(source)
    weights = dict(found.weights)
    sizes = found.sizes
    if sizes["model"] == "transformer" and "n_head" not in sizes:
        sizes["n_head"] = 4 if n_head is None else n_head
    elif n_head is not None:
        found_heads = "a model that stores its heads" if "n_head" in sizes else f"the model {sizes['model']}"
        raise ConfigError("a Transformer of makemore with --n-head", found_heads, "omit --n-head")
    config = _config(found, data)
    corpus = read_corpus(config)
    model = ModelConfig(**{"vocab_size": corpus.vocab_size, "block_size": corpus.block_size} | sizes)
    for name, what in (("vocab_size", "tokens"), ("block_size", "positions")):
        if (wanted := getattr(model, name)) != getattr(corpus, name):
            told = f"{getattr(corpus, name)} in {data}{'' if found.is_text else ', the end token included'}"
            raise ConfigError(f"the data of a model with {wanted} {what}", told, "the file it was trained on")
    _require_same_tokens(found, corpus, source, data)
    if model.tie_weights and "wte.weight" in weights:
        weights["lm_head.weight"] = weights["wte.weight"]
    wanted, got = layout(model), layout_of(weights)
    if wanted != got:
        raise RunError(
            f"the weights of a {model.model} in {source}", differences(wanted, got), "another file"
        )
    if bad := [name for name, value in weights.items() if not value.isfinite().all()]:
        told = f"NaN or infinities in {', '.join(bad)}"
        raise RunError(f"finite weights in {source}", told, "another checkpoint")
    made = Settings(
        config.to_json(),
        config.to_json(),
        model,
        corpus.vocabulary,
        corpus.split,
        corpus.text,
        versions_here(),
    )
    with locked(out), Run.create(out, made) as run:
        result = _result(run, config, weights)  # before it is a run, so that a failure leaves nothing
        run.begin(Checkpoint(weights, {}, State(0, 0)))
        run.write_result(result.to_json())
    return Run.open(out)


def _config(found: Found, data: Path) -> TrainConfig:
    """How the data is read, and the model's options."""
    sizes, spec = found.sizes, model_spec(found.sizes["model"])
    options = {name: sizes.get(name, getattr(ModelConfig, name)) for name in MODEL_OPTIONS if spec.has(name)}
    if not found.is_text:
        return TrainConfig(file=data, preset="makemore", split=MAKEMORE, model=sizes["model"], **options)
    return TrainConfig(
        file=data,
        mode="text",
        preset="shakespeare",
        block_size=sizes["block_size"],
        vocab_size=sizes["vocab_size"] if data.suffix == ".bin" else None,
        **options,
    )


def _result(run: Run, config: TrainConfig, weights: Weights) -> TrainResult:
    """The losses of the imported weights on the held-out parts."""
    model, parts = build(run.model, seed=0), open_datasets(run, config, torch.device("cpu"))
    run.restore(model, weights)

    def loss_of(part: Dataset | None) -> float | None:
        loss = None if part is None else evaluate(model, part, nullcontext)
        if loss is not None and not math.isfinite(loss):
            raise RunError("weights with a finite loss", f"a loss of {loss}", "another checkpoint")
        return loss

    return TrainResult(
        run=str(run.path),
        model=run.model.model,
        attention=run.model.attention if model_spec(run.model.model).attends else None,
        parameters=count_parameters(model),
        steps=0,
        train_seconds=0.0,
        step_ms=0.0,
        val_loss=loss_of(parts.validation),
        test_loss=loss_of(parts.test),
        leak_share=run.split.leak_share,
        test_loss_unleaked=loss_of(parts.unleaked),
    )


_ODD = (LookupError, TypeError, AttributeError, RuntimeError, ValueError)
"""What torch or a conversion raises for content of another kind."""
_VALID = "makemore's model.pt, nanoGPT's ckpt.pt, or a folder of a Hugging Face GPT-2"


def _checkpoint(source: Path) -> Found:
    wanted = f"a checkpoint of weights only at {source}"
    with open_input(source, wanted, _VALID, again=True) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the version of pickle
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, EOFError, OSError, *_ODD) as error:
            needs_code = "GLOBAL" in str(error) or "Unsupported class" in str(error)
            found = "it would execute code" if needs_code else "damaged, truncated, or another format"
            raise RunError(wanted, found, _VALID) from None
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise RunError(wanted, type(content).__name__, _VALID)
    try:
        if {"model", "model_args"} <= content.keys():
            return _nanogpt(content["model"], content["model_args"], source).in_float32()
        for marker, convert in MAKEMORE_MODELS.items():
            if marker in content:
                return convert(dict(content)).in_float32()
    except _ODD as error:
        raise RunError(f"a whole model at {source}", f"damaged: {error!r:.200}", _VALID) from None
    raise RunError(f"a model of makemore at {source}", ", ".join(list(content)[:4]) or "nothing", _VALID)


def _nanogpt(weights: Weights, args: Mapping[str, Any], source: Path) -> Found:
    """https://github.com/karpathy/nanoGPT, train.py."""
    names = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
    if odd := [name for name in names if type(args.get(name)) is not int]:
        raise RunError(f"nanoGPT's model_args in {source}", f"no {', '.join(odd)}", "an intact ckpt.pt")
    sizes: dict[str, Any] = {name: args[name] for name in names} | {
        "model": "transformer",
        "activation": "gelu",
        "bias": bool(args.get("bias", True)),
        "tie_weights": True,
    }
    return Found(sizes, our_weights(weights, transposed=False), is_text=True)


def _hugging_face(folder: Path) -> Found:
    """https://huggingface.co/docs/transformers/model_doc/gpt2."""
    wanted = f"a Hugging Face GPT-2 at {folder}"
    valid = "GPT2LMHeadModel with config.json and model.safetensors"
    path, tensors = folder / "config.json", folder / "model.safetensors"
    config = read(path, f"a GPT-2's configuration at {path}", valid, LARGEST_CONFIG)
    if not isinstance(config, dict) or config.get("model_type") not in (None, "gpt2"):
        kind = f"model_type {config['model_type']!r:.40}" if isinstance(config, dict) else "no JSON object"
        raise RunError(wanted, f"{kind} in {path}", valid)
    try:
        with open_input(tensors, f"a GPT-2's weights at {tensors}", valid, again=True) as file:
            weights = load(file.read())
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(wanted, str(error)[:200], valid) from None
    names = ("n_positions", "vocab_size", "n_layer", "n_head", "n_embd")
    if lacking := [name for name in names if type(config.get(name)) is not int]:
        raise RunError(f"the sizes of a GPT-2 in {path}", f"no {', '.join(lacking)}", valid)
    ours = {theirs: name for name, theirs in ACTIVATIONS.items()}
    fixed = _FIXED | {"n_inner": 4 * config["n_embd"]}
    odd = [
        f"{name} {config[name]}"
        for name, value in fixed.items()
        if config.get(name, value) not in (value, None)
    ]
    if (activation := str(config.get("activation_function", "gelu_new"))) not in ours:
        odd.append(f"activation_function {activation}")
    if odd:
        raise RunError(f"a GPT-2 in {path} that computes as OpenAI's does", ", ".join(odd)[:200], valid)
    sizes = {name: config[name] for name in names[1:]} | {
        "model": "transformer",
        "block_size": config["n_positions"],
        "activation": ours[activation],
        "tie_weights": bool(config.get("tie_word_embeddings", True)),
    }
    return Found(
        sizes,
        our_weights(weights, transposed=True),
        is_text=config.get("bos_token_id") != 0,
        tokens=_tokens(folder / "tokenizer.json"),
    ).in_float32()


def _tokens(path: Path) -> Mapping[str, int]:
    """The ids of a tokenizer's tokens, if there is one that has them in a table."""
    if not path.exists():
        return {}
    content = read(path, f"a tokenizer at {path}", "tokenizer.json of transformers", LARGEST_TOKENIZER)
    model = content.get("model") if isinstance(content, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    return vocabulary if isinstance(vocabulary, dict) else {}


def _require_same_tokens(found: Found, corpus: Corpus, source: Path, data: Path) -> None:
    """Refuse a model whose characters have other ids than here: its weights would say something else."""
    if corpus.text is not None and corpus.text.kind != "characters":
        return
    for number, character in enumerate(corpus.vocabulary.characters, 0 if found.is_text else 1):
        if (theirs := found.tokens.get(character, number)) != number:
            raise ConfigError(
                f"a model in {source} with the characters of {data} in the order of their code points",
                f"{character!r} has the id {theirs} instead of {number}",
                "the data that it was trained on, or a model with ids in this order",
            )


_FIXED = {
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
"""What a config.json may not change."""
