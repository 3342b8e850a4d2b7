"""Exports are what the other libraries load, and compute the same."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from flashmore.cli.main import main
from flashmore.errors import ConfigError, FlashmoreError
from flashmore.generation.load import load_model
from flashmore.generation.options import GenerateOptions
from flashmore.generation.sample import generate
from flashmore.runs import Run
from flashmore.share.export import CHECK, FORMATS, export
from flashmore.specs import models

ASCII = {"characters": "abc defg"}


def greedy(run: Run) -> str:
    options = GenerateOptions(count=1, seed=1, top_k=1, repeats=True, max_draws=1)
    return generate(run, options).names[0].text


def test_transformers_loads_a_folder_and_generates_the_same(trained: dict[str, Run], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, out = trained["transformer"], tmp_path / "hf"
    assert main(["export", str(run.path), "--to", "hf", "--out", str(out)]) == 0
    check = json.loads((out / CHECK).read_text(encoding="utf-8"))
    assert check["largest_difference"] <= 1e-5
    assert check["greedy_identical"] is True
    assert check["sequences"] >= 200
    model: Any = AutoModelForCausalLM.from_pretrained(out)
    tokenizer: Any = AutoTokenizer.from_pretrained(out)
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert tokenizer("emma")["input_ids"] == [0, *run.vocabulary.encode("emma")]
    ids = model.generate(
        torch.tensor([[0]]), attention_mask=torch.ones(1, 1), do_sample=False, max_length=run.model.block_size
    )
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == greedy(run)


def test_transformers_loads_a_run_on_text(trained: dict[str, Run], hugging_face: dict[str, Path]) -> None:
    from transformers import AutoTokenizer

    run, out = trained["text"], hugging_face["text"]
    assert json.loads((out / CHECK).read_text(encoding="utf-8"))["largest_difference"] <= 1e-5
    tokenizer: Any = AutoTokenizer.from_pretrained(out)
    text = "anna\nben"
    assert tokenizer("an☃na")["input_ids"] == tokenizer("anna")["input_ids"]
    assert tokenizer(text)["input_ids"] == [number - 1 for number in run.vocabulary.encode(text)]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_onnxruntime_computes_the_same_at_every_length(trained: dict[str, Run], tmp_path: Path) -> None:
    run = trained["transformer"]
    made = export(run, "onnx", tmp_path / "onnx")
    assert made.files == ("model.onnx",)
    assert made.checked_with.startswith("onnxruntime ")
    assert made.largest_difference <= 1e-5
    assert made.greedy_identical


def test_a_fresh_process_runs_the_exported_program(trained: dict[str, Run], tmp_path: Path) -> None:
    made = export(trained["transformer"], "pt2", tmp_path / "pt2")
    assert made.files == ("model.pt2",)
    assert made.largest_difference <= 1e-5
    assert made.greedy_identical


def test_gguf_holds_every_tensor_and_the_vocabulary(make_run: Callable[..., Run], tmp_path: Path) -> None:
    from gguf import GGUFReader

    run = make_run("transformer", **ASCII, bias=False)
    made = export(run, "gguf", tmp_path / "gguf")
    assert made.largest_difference == 0
    reader: Any = GGUFReader(tmp_path / "gguf" / "model.gguf")
    assert reader.fields["general.architecture"].contents() == "gpt2"
    assert reader.fields["gpt2.context_length"].contents() == run.model.block_size
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert tokens == ["<|endoftext|>", "Ġ", *"abcdefg"]
    assert {"blk.2.attn_qkv.bias", "output_norm.bias", "output.weight"} <= {
        each.name for each in reader.tensors
    }


@pytest.mark.parametrize("model", ["gru", "lstm", "rnn"])
def test_recurrent_models_become_onnx(make_run: Callable[..., Run], tmp_path: Path, model: str) -> None:
    made = export(make_run(model), "onnx", tmp_path / "onnx")
    assert made.largest_difference <= 1e-5
    assert made.greedy_identical


def test_the_gru_of_the_paper_becomes_onnx(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run("gru", reset_after=False)
    assert export(run, "onnx", tmp_path / "onnx").largest_difference <= 1e-5


@pytest.mark.long
@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("model", models())
def test_every_format_holds_a_model_or_says_why_not(
    make_run: Callable[..., Run], tmp_path: Path, model: str, to: str
) -> None:
    run = make_run(model, **ASCII, factor=1.0)
    if FORMATS[to].refuses(run) is None:
        made = export(run, to, tmp_path / "out")
        assert made.largest_difference <= 1e-5
        assert made.greedy_identical
    else:
        with pytest.raises(ConfigError, match=f"wanted: a run that --to {to} can hold"):
            export(run, to, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("to", "sizes", "found"),
    [
        ("hf", {"model": "gru"}, "GPT-2 is a Transformer, and this is the model gru"),
        (
            "gguf",
            {"model": "transformer", **ASCII, "activation": "relu_squared"},
            "this model relu_squared",
        ),
        ("gguf", {"model": "transformer"}, "'é' is not printable ASCII"),
        ("pt2", {"model": "lstm"}, "the recurrent kernel of lstm"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_with_the_reason(
    make_run: Callable[..., Run], tmp_path: Path, to: str, sizes: dict[str, Any], found: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        export(make_run(**sizes), to, tmp_path / "out")
    assert found in refused.value.found
    assert "safetensors" in refused.value.valid
    assert not (tmp_path / "out").exists()


def test_an_occupied_folder_or_an_unknown_opset_leaves_nothing(
    trained: dict[str, Run], make_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, recurrent, out = trained["bigram"], make_run("gru"), tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(ConfigError, match="a new or empty folder"):
        export(run, "safetensors", out)
    monkeypatch.setattr("flashmore.share.onnx_graph.OPSET", 9999)
    with pytest.raises(FlashmoreError, match="onnxruntime to write and load"):
        export(recurrent, "onnx", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_logits_that_are_no_numbers_are_a_difference(
    trained: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where greedy names never look: at the last position of the context."""
    from flashmore.share import export as exporting

    run, form = trained["transformer"], FORMATS["safetensors"]

    def load(run: Run, folder: Path) -> Any:
        model = load_model(run, "cpu")

        def logits(ids: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = model(ids)
            return found * torch.nan if ids.size(1) == run.model.block_size else found

        return nullcontext(logits)

    spoiled = exporting.Format(form.packages, form.refuses, form.write, load)
    monkeypatch.setitem(FORMATS, "safetensors", spoiled)
    with pytest.raises(FlashmoreError, match="logits that differ by nan"):
        export(run, "safetensors", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_export_is_not_written(
    trained: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check sees a single changed weight."""
    from flashmore.share import export as exporting

    def spoiled(run: Run, model: torch.nn.Module, folder: Path) -> None:
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        weights["wpe.weight"][0, 0] += 0.01
        other = load_model(run, "cpu")
        other.load_state_dict(weights)
        exporting._write_safetensors(run, other, folder)

    form = FORMATS["safetensors"]
    monkeypatch.setitem(
        FORMATS, "safetensors", exporting.Format(form.packages, form.refuses, spoiled, form.load)
    )
    with pytest.raises(FlashmoreError, match="logits that differ by"):
        export(trained["transformer"], "safetensors", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
