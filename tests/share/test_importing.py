"""Models of makemore, nanoGPT and Hugging Face become runs that compute the same."""

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from flashmore.cli.main import main
from flashmore.config import MODEL_OPTIONS
from flashmore.errors import ConfigError, FlashmoreError, RunError
from flashmore.generation.load import load_model
from flashmore.generation.options import GenerateOptions
from flashmore.generation.sample import generate, log_probs
from flashmore.runs import Run
from flashmore.share.export import export
from flashmore.share.importing import import_model
from flashmore.training.result import result_of

NAMES = ["anna", "ben", "carla", "dan", "eve", "frieda", "gus", "hal", "ida", "jan"]
V, T, C = len(set("".join(NAMES))) + 1, max(map(len, NAMES)) + 1, 8
Weights = dict[str, Tensor]


def random_weights(**shapes: tuple[int, ...]) -> Weights:
    source = torch.Generator().manual_seed(1)
    return {
        name.replace("__", "."): torch.randn(shape, generator=source) / 3 for name, shape in shapes.items()
    }


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def bigram(weights: Weights, ids: Tensor) -> Tensor:
    return weights["logits"][ids]


def mlp(weights: Weights, ids: Tensor) -> Tensor:
    """The window of T characters, newest first, blanks before the start."""
    windows = [F.pad(ids, (back, 0), value=V)[:, : ids.size(1)] for back in range(T)]
    x = torch.cat([weights["wte.weight"][each] for each in windows], dim=-1)
    return linear(torch.tanh(linear(x, weights, "mlp.0")), weights, "mlp.2")


def bow(weights: Weights, ids: Tensor) -> Tensor:
    length = ids.size(1)
    x = weights["wte.weight"][ids] + weights["wpe.weight"][:length]
    x = x + torch.stack([x[:, : place + 1].mean(1) for place in range(length)], dim=1)
    hidden = torch.tanh(linear(x, weights, "context_block.mlp.c_fc"))
    return linear(x + linear(hidden, weights, "context_block.mlp.c_proj"), weights, "lm_head")


def rnn(weights: Weights, ids: Tensor) -> Tensor:
    def cell(x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(linear(torch.cat((x, h), dim=1), weights, "cell.xh_to_h"))

    return recurrent(weights, ids, cell)


def gru(weights: Weights, ids: Tensor) -> Tensor:
    """The reset gate before the matrix, as in the paper."""

    def cell(x: Tensor, h: Tensor) -> Tensor:
        both = torch.cat((x, h), dim=1)
        reset = torch.sigmoid(linear(both, weights, "cell.xh_to_r"))
        update = torch.sigmoid(linear(both, weights, "cell.xh_to_z"))
        fresh = torch.tanh(linear(torch.cat((x, reset * h), dim=1), weights, "cell.xh_to_hbar"))
        return (1 - update) * h + update * fresh

    return recurrent(weights, ids, cell)


def recurrent(weights: Weights, ids: Tensor, cell: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    h, states = weights["start"].expand(len(ids), -1), []
    for x in weights["wte.weight"][ids].unbind(1):
        h = cell(x, h)
        states.append(h)
    return linear(torch.stack(states, dim=1), weights, "lm_head")


def transformer(weights: Weights, ids: Tensor) -> Tensor:
    """GPT-2 by its formulas, with two heads and biases, and the tanh approximation of GELU."""
    return gpt2(weights, ids, heads=2, approximate="tanh")


def gpt2(weights: Weights, ids: Tensor, heads: int, approximate: str) -> Tensor:
    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    length = ids.size(1)
    x = weights["transformer.wte.weight"][ids] + weights["transformer.wpe.weight"][:length]
    layer = 0
    while f"transformer.h.{layer}.ln_1.weight" in weights:
        block = f"transformer.h.{layer}"
        qkv = linear(norm(x, f"{block}.ln_1"), weights, f"{block}.attn.c_attn")
        q, k, v = (part.view(*part.shape[:-1], heads, -1).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        scores = q @ k.transpose(-2, -1) / q.size(-1) ** 0.5
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        x = x + linear(mixed.transpose(1, 2).flatten(2), weights, f"{block}.attn.c_proj")
        wide = F.gelu(linear(norm(x, f"{block}.ln_2"), weights, f"{block}.mlp.c_fc"), approximate=approximate)
        x = x + linear(wide, weights, f"{block}.mlp.c_proj")
        layer += 1
    return linear(norm(x, "transformer.ln_f"), weights, "lm_head")


def gpt2_weights(size: int, context: int, *, bias: bool) -> Weights:
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte": (size, C), "transformer.wpe": (context, C)}
    for layer in range(2):
        block = f"transformer.h.{layer}"
        shapes |= {
            f"{block}.ln_1": (C,), f"{block}.attn.c_attn": (3 * C, C), f"{block}.attn.c_proj": (C, C),
            f"{block}.ln_2": (C,), f"{block}.mlp.c_fc": (4 * C, C), f"{block}.mlp.c_proj": (C, 4 * C),
        }  # fmt: skip
    shapes["transformer.ln_f"] = (C,)
    named = {f"{name}.weight".replace(".", "__"): shape for name, shape in shapes.items()}
    if bias:
        inner = [name for name in shapes if not name.endswith(("wte", "wpe"))]
        named |= {f"{name}.bias".replace(".", "__"): (shapes[name][0],) for name in inner}
    return random_weights(**named, lm_head__weight=(size, C))


HEAD: dict[str, tuple[int, ...]] = {"lm_head__weight": (V, C), "lm_head__bias": (V,)}
MODELS: dict[str, tuple[Callable[[Weights, Tensor], Tensor], Weights]] = {
    "bigram": (bigram, random_weights(logits=(V, V))),
    "mlp": (mlp, random_weights(wte__weight=(V + 1, C), mlp__0__weight=(C, T * C), mlp__0__bias=(C,),
                                mlp__2__weight=(V, C), mlp__2__bias=(V,))),
    "bow": (bow, random_weights(
        wte__weight=(V, C), wpe__weight=(T, C), context_block__cbow__bias=(1, T, T),
        context_block__mlp__c_fc__weight=(C, C), context_block__mlp__c_fc__bias=(C,),
        context_block__mlp__c_proj__weight=(C, C), context_block__mlp__c_proj__bias=(C,), **HEAD)),
    "rnn": (rnn, random_weights(start=(1, C), wte__weight=(V, C), cell__xh_to_h__weight=(C, 2 * C),
                                cell__xh_to_h__bias=(C,), **HEAD)),
    "gru": (gru, random_weights(start=(1, C), wte__weight=(V, C), **HEAD, **{
        f"cell__xh_to_{gate}__{kind}": shape
        for gate in ("z", "r", "hbar") for kind, shape in (("weight", (C, 2 * C)), ("bias", (C,)))})),
    "transformer": (transformer, gpt2_weights(V, T, bias=True) | {
        f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, T, T) for layer in range(2)}),
}  # fmt: skip
"""makemore's models by their formulas, with weights by makemore's names, its masks among them."""


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "names.txt"
    path.write_text("\n".join(NAMES), encoding="utf-8")
    return path


def largest_difference(run: Run, expected: Callable[[Tensor], Tensor]) -> float:
    ids = torch.randint(
        run.model.vocab_size, (50, run.model.block_size), generator=torch.Generator().manual_seed(2)
    )
    with torch.inference_mode():
        return float((load_model(run, "cpu")(ids) - expected(ids)).abs().max())


@pytest.mark.parametrize("model", MODELS)
def test_makemores_models_become_runs(names: Path, tmp_path: Path, model: str) -> None:
    compute, weights = MODELS[model]
    torch.save(weights, tmp_path / "model.pt")
    arguments = ["import", str(tmp_path / "model.pt"), "--data", str(names), "--out", str(tmp_path / "run")]
    assert main([*arguments, *(["--n-head", "2"] if model == "transformer" else [])]) == 0
    run = Run.open(tmp_path / "run")
    assert run.model.model == model
    assert largest_difference(run, lambda ids: compute(weights, ids)) <= 1e-6
    made = generate(run, GenerateOptions(count=5, seed=1, repeats=True))
    assert len(made.names) == 5
    assert run.split.novelty("anna") in ("train", "test")
    result = result_of(run)
    assert result is not None
    scores = log_probs(run, load_model(run, "cpu"), run.split.test, "cpu")
    positions = sum(map(len, run.split.test)) + len(run.split.test)
    assert result.test_loss == pytest.approx(-sum(scores) / positions, abs=1e-5)


def test_an_imported_run_is_compared_and_packed_but_not_resumed(
    names: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(MODELS["bigram"][1], tmp_path / "model.pt")
    run = str(tmp_path / "run")
    assert main(["import", str(tmp_path / "model.pt"), "--data", str(names), "--out", run]) == 0
    told = capsys.readouterr().err
    assert re.search(r"imported the model bigram into .*; held-out loss \d\.\d{4} nats", told)
    assert main(["compare", run, run, "--count", "2"]) == 0
    assert main(["pack", run, "--out", str(tmp_path / "run.pack")]) == 0
    assert main(["page", str(tmp_path / "run.pack"), "--out", str(tmp_path / "page.html")]) == 0
    assert main(["train", "--resume", run, "--max-steps", "10"]) == 2
    assert "an imported model" in capsys.readouterr().err


def test_heads_are_asked_for_only_where_they_are_unknown(names: Path, tmp_path: Path) -> None:
    torch.save(MODELS["bigram"][1], tmp_path / "model.pt")
    with pytest.raises(ConfigError, match="a Transformer of makemore with --n-head"):
        import_model(tmp_path / "model.pt", names, tmp_path / "run", n_head=2)


def save_nanogpt(folder: Path, *, bias: bool, **changed: Tensor) -> Weights:
    """Save the checkpoint of a model of input.txt, with other values of the tensors that are named."""
    text = "\n".join(NAMES) * 3
    (folder / "input.txt").write_text(text, encoding="utf-8")
    size = len(set(text))
    weights = gpt2_weights(size, 5, bias=bias) | {
        name.replace("__", "."): value for name, value in changed.items()
    }
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    args = {
        "block_size": 5,
        "vocab_size": size,
        "n_layer": 2,
        "n_head": 2,
        "n_embd": C,
        "bias": bias,
        "dropout": 0.0,
    }
    compiled = {f"_orig_mod.{name}": value for name, value in weights.items()}
    torch.save(
        {"model": compiled, "model_args": args, "iter_num": 5, "config": {"dataset": "x"}},
        folder / "ckpt.pt",
    )
    return weights


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpts_checkpoint_becomes_a_run_on_text(tmp_path: Path, bias: bool) -> None:
    weights = save_nanogpt(tmp_path, bias=bias)
    run = import_model(tmp_path / "ckpt.pt", tmp_path / "input.txt", tmp_path / "run")
    assert run.text is not None
    assert largest_difference(run, lambda ids: gpt2(weights, ids, 2, "none")) <= 1e-6
    expected = {name: getattr(run.model, name) for name in MODEL_OPTIONS}
    assert run.config == run.settings.requested == run.config | expected


def test_a_nanogpt_that_cannot_be_used_leaves_nothing(tmp_path: Path) -> None:
    path, text, out = tmp_path / "ckpt.pt", tmp_path / "input.txt", tmp_path / "run"
    save_nanogpt(tmp_path, bias=True, transformer__wpe__weight=torch.full((5, C), torch.nan))
    assert "NaN or infinities in wpe.weight" in refused(path, text, out).found
    save_nanogpt(tmp_path, bias=True, transformer__ln_f__weight=torch.full((C,), 3e38))
    assert "a finite loss" in refused(path, text, out).wanted
    save_nanogpt(tmp_path, bias=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in refused(path, text, out).found
    path.write_bytes(whole)
    text.write_text("abc\n" * 30, encoding="utf-8")
    assert refused(path, text, out).found == f"4 in {text}"


@pytest.mark.parametrize("kind", ["transformer", "text"])
def test_a_round_trip_over_hugging_face_is_bit_exact(
    trained: dict[str, Run], hugging_face: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    run = trained[kind]
    data = Path(run.config["file"])
    if run.text is None:  # makemore's split, which imported items get, keeps all lines
        data = tmp_path / "names.txt"
        data.write_text("\n".join(run.split.train + run.split.validation + run.split.test), encoding="utf-8")
    again = import_model(hugging_face[kind], data, tmp_path / "run")
    export(again, "hf", tmp_path / "again")
    first, second = (
        load_file(folder / "model.safetensors") for folder in (hugging_face[kind], tmp_path / "again")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    ids = torch.arange(run.model.block_size)[None] % run.model.vocab_size
    with torch.inference_mode():
        torch.testing.assert_close(load_model(again, "cpu")(ids), load_model(run, "cpu")(ids))


def test_a_tokenizer_with_another_order_is_refused(
    trained: dict[str, Run], hugging_face: dict[str, Path], tmp_path: Path
) -> None:
    """Its weights would be taken for those of other characters."""
    folder, run = tmp_path / "model", trained["text"]
    copytree(hugging_face["text"], folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    told = refused(folder, Path(run.config["file"]), tmp_path / "run").found
    assert told == f"{first!r} has the id 1 instead of 0"


class Payload:
    """A pickle that would make a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def refused(source: Path, names: Path, out: Path) -> FlashmoreError:
    with pytest.raises(FlashmoreError) as error:
        import_model(source, names, out)
    assert not out.exists()
    return error.value


def test_a_checkpoint_that_would_execute_code_is_refused(names: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"logits": Payload(tmp_path / "executed")}, path)
    assert "it would execute code" in refused(path, names, tmp_path / "run").found
    path.write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    assert isinstance(refused(path, names, tmp_path / "run"), RunError)
    assert not (tmp_path / "executed").exists()


def test_other_files_and_data_are_refused_with_the_reason(names: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "model.pt", tmp_path / "run"
    assert "No such file" in refused(path, names, out).found
    path.write_bytes(b"not a checkpoint")
    refused(path, names, out)
    torch.save(torch.zeros(3), path)
    assert refused(path, names, out).found == "Tensor"
    torch.save({"conv.weight": torch.zeros(3)}, path)
    assert refused(path, names, out).found == "conv.weight"
    torch.save({"logits": torch.zeros(5, 5)}, path)
    assert f"{V} in" in refused(path, names, out).found
    torch.save({"logits": torch.zeros(V, V, dtype=torch.complex64)}, path)
    assert refused(path, names, out).found == "torch.complex64 in logits"
    torch.save(MODELS["rnn"][1] | {"start": torch.zeros(1, C + 1)}, path)
    assert "of width" in refused(path, names, out).found
    torch.save(MODELS["bow"][1] | {"lm_head.bias": torch.zeros(V + 1)}, path)
    assert "lm_head.bias" in refused(path, names, out).found


ODD: dict[str, Any] = {
    "a scalar": {"logits": torch.tensor(1.0)},
    "one tensor of an mlp": {"mlp.0.weight": torch.zeros(3)},
    "one tensor of a gru": {"cell.xh_to_z.weight": torch.zeros(3, 3)},
    "half a transformer": {"transformer.wte.weight": torch.zeros(3, 3)},
    "numbers as names": {1: torch.zeros(3)},
    "nothing": {},
    "arguments that are no mapping": {"model": {}, "model_args": [1]},
    "weights that are none": {"logits": "words"},
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_a_checkpoint_of_another_kind_is_refused(names: Path, tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "model.pt")
    assert refused(tmp_path / "model.pt", names, tmp_path / "run").found


@pytest.mark.parametrize(
    "change",
    [
        {"layer_norm_epsilon": 0.5},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"n_inner": 7},
        {"activation_function": [1]},
        {"n_layer": "2"},
        {"n_head": 5},
        {"n_positions": 10**5},
    ],
    ids=str,
)
def test_a_gpt2_that_computes_otherwise_is_refused(
    trained: dict[str, Run], hugging_face: dict[str, Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    run, folder = trained["text"], tmp_path / "hf"
    copytree(hugging_face["text"], folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
    refused(folder, Path(run.config["file"]), tmp_path / "run")


def test_a_folder_without_safetensors_names_the_missing_file(names: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    told = refused(tmp_path, names, tmp_path / "run")
    assert str(tmp_path / "model.safetensors") in told.wanted
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    assert "model_type 'llama'" in refused(tmp_path, names, tmp_path / "run").found


@pytest.mark.parametrize("config", ["[1]", "{}", "not JSON", '{"model_type": "gpt2"}'])
def test_a_folder_of_another_kind_is_refused(names: Path, tmp_path: Path, config: str) -> None:
    folder = tmp_path / "hf"
    folder.mkdir()
    refused(folder, names, tmp_path / "run")
    (folder / "config.json").write_text(config, encoding="utf-8")
    refused(folder, names, tmp_path / "run")


def test_links_in_a_folder_are_followed_as_hugging_faces_cache_has_them(
    trained: dict[str, Run], hugging_face: dict[str, Path], tmp_path: Path
) -> None:
    run, folder = trained["text"], tmp_path / "linked"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).symlink_to(hugging_face["text"] / name)
    import_model(folder, Path(run.config["file"]), tmp_path / "run")
