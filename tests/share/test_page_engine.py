"""The JavaScript of the page computes what PyTorch and Python compute."""

import random
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flashmore.backends.manual import manual
from flashmore.generation.draw import next_probabilities, pick, random_numbers
from flashmore.generation.load import load_model
from flashmore.generation.options import GenerateOptions
from flashmore.generation.sample import generate
from flashmore.generation.text import continue_text
from flashmore.models.config import ACTIVATIONS
from flashmore.runs import Run
from flashmore.share.maps import attention_maps
from flashmore.share.page import page
from flashmore.specs import models

Ask = Callable[..., list[Any]]
CASES: dict[str, dict[str, Any]] = {name: {"model": name} for name in models()} | {
    f"{activation}, {'bias' if bias else 'no bias'}": {
        "model": "transformer", "activation": activation, "bias": bias, "tie_weights": not bias,
    }
    for activation, bias in product(ACTIVATIONS, (True, False))
}  # fmt: skip
CASES["one channel"] = {"model": "gru", "n_embd": 1}
CASES["long context"] = {"model": "mlp", "block_size": 30}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_pytorch_in_float64(
    case: str, make_run: Callable[..., Run], tmp_path: Path, ask: Ask
) -> None:
    run, path = make_run(**CASES[case]), tmp_path / "page.html"
    path.write_text(page([run]), encoding="utf-8")
    source = torch.Generator().manual_seed(5)
    rows = torch.randint(run.model.vocab_size, (50, run.model.block_size), generator=source)
    with torch.inference_mode():
        expected = load_model(run, "cpu").double()(rows)  # (B, T, V)
    found = ask(path, *({"ask": "logits", "model": 0, "ids": ids} for ids in rows.tolist()))
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected, atol=1e-10, rtol=0)


def test_trained_logits_are_those_of_pytorch_in_float64(
    trained: dict[str, Run], tmp_path: Path, ask: Ask
) -> None:
    for name, run in trained.items():
        path = tmp_path / f"{name}.html"
        path.write_text(page([run]), encoding="utf-8")
        source = torch.Generator().manual_seed(5)
        rows = torch.randint(run.model.vocab_size, (200, run.model.block_size), generator=source)
        with torch.inference_mode():
            expected = load_model(run, "cpu").double()(rows)  # (B, T, V)
        found = ask(path, *({"ask": "logits", "model": 0, "ids": ids} for ids in rows.tolist()))
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected, atol=1e-10, rtol=0)


def require_same_names(run: Run, path: Path, ask: Ask, options: GenerateOptions) -> None:
    """The page's names, labels and log-probabilities are those of `generate`, up to rounding."""
    expected = generate(run, options)
    question = {
        "prefix": options.prefix, "count": options.count, "seed": str(options.seed),
        "temperature": options.temperature, "topK": options.top_k, "topP": options.top_p,
    }  # fmt: skip
    (found,) = ask(path, {"ask": "names", "model": 0} | question)
    pairs = list(zip(found["found"], expected.names, strict=True))
    same = [(mine, theirs) for mine, theirs in pairs if mine["text"] == theirs.text]
    assert len(same) >= 0.999 * len(pairs)
    assert all(mine["novelty"] == theirs.novelty for mine, theirs in same)
    found_log_probs = torch.tensor([mine["logProb"] for mine, _ in same])
    expected_log_probs: Tensor = torch.tensor([theirs.log_prob for _, theirs in same])
    torch.testing.assert_close(found_log_probs, expected_log_probs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        GenerateOptions(count=1000, seed=3),
        GenerateOptions(count=300, seed=2**40, temperature=0.7, top_k=4),
        GenerateOptions(count=300, seed=0, temperature=1.6, top_p=0.8, prefix="ma"),
    ],
    ids=["plain", "top-k", "top-p"],
)
@pytest.mark.parametrize("name", ["transformer", "bigram"])
def test_a_seed_gives_the_names_of_generate(
    trained: dict[str, Run], tmp_path: Path, ask: Ask, name: str, options: GenerateOptions
) -> None:
    path = tmp_path / "page.html"
    path.write_text(page([trained[name]]), encoding="utf-8")
    require_same_names(trained[name], path, ask, options)


@pytest.mark.parametrize("name", models())
def test_every_model_gives_the_names_of_generate(
    make_run: Callable[..., Run], tmp_path: Path, ask: Ask, name: str
) -> None:
    run, path = make_run(name), tmp_path / "page.html"
    path.write_text(page([run]), encoding="utf-8")
    require_same_names(run, path, ask, GenerateOptions(count=200, seed=5, prefix="ab", temperature=0.9))


def test_draws_end_where_no_name_is_found(make_run: Callable[..., Run], tmp_path: Path, ask: Ask) -> None:
    run, path = make_run("bigram"), tmp_path / "page.html"
    path.write_text(page([run]), encoding="utf-8")
    expected = generate(run, GenerateOptions(count=5, seed=1, top_k=1, new_only=True))
    question = {"ask": "names", "model": 0, "prefix": "", "seed": "1", "count": 5, "topK": 1, "newOnly": True}
    (found,) = ask(path, question)
    assert found["drawn"] == expected.draws == 20_000
    assert [name["text"] for name in found["found"]] == [name.text for name in expected.names]


def test_random_numbers_are_pythons(ask: Ask) -> None:
    seeds = (0, 1, 3407, 2**32 - 1, 2**32, 2**63 - 1)
    found = ask(None, *({"ask": "random", "seed": str(seed), "count": 1300} for seed in seeds))
    for seed, numbers in zip(seeds, found, strict=True):
        python = random.Random(seed)
        expected = [python.random() for _ in range(1300)]
        assert numbers == expected == random_numbers(seed).random_sample(1300).tolist()


def test_filters_are_those_of_generate(ask: Ask) -> None:
    source = torch.Generator().manual_seed(6)
    options = [
        GenerateOptions(temperature=temperature, top_k=top_k, top_p=top_p)
        for temperature, top_k, top_p in product(
            (0.01, 0.5, 1.0, 3.0), (None, 1, 3, 50), (None, 0.2, 0.9, 1.0)
        )
    ]
    logits = [torch.randn(12, generator=source, dtype=torch.float64).mul(3).round() for _ in options]  # ties
    questions = [
        {"ask": "filtered", "logits": each.tolist(), "temperature": option.temperature,
         "topK": option.top_k, "topP": option.top_p}
        for each, option in zip(logits, options, strict=True)
    ]  # fmt: skip
    expected = [
        next_probabilities(each.log_softmax(-1)[None], option)[0]
        for each, option in zip(logits, options, strict=True)
    ]
    torch.testing.assert_close(
        torch.tensor(ask(None, *questions), dtype=torch.float64), torch.stack(expected)
    )


def test_pick_is_that_of_generate(ask: Ask) -> None:
    numbers = [0.0, 0.1, 0.25, 0.5, 0.7, 1 - 2**-53]
    rows = [[0.25, 0.25, 0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5], [0.1] * 10]
    for row in rows:
        probabilities = torch.tensor([row], dtype=torch.float64).expand(len(numbers), -1)
        places = torch.arange(len(numbers))
        expected = pick(probabilities, torch.tensor(numbers, dtype=torch.float64), places).tolist()
        found = ask(None, *({"ask": "pick", "probabilities": row, "number": number} for number in numbers))
        assert found == expected


def test_the_error_function(ask: Ask) -> None:
    x = torch.linspace(-7, 7, 701, dtype=torch.float64)
    (found,) = ask(None, {"ask": "erf", "x": x.tolist()})
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), torch.erf(x), atol=1e-14, rtol=1e-12)


def test_attention_is_that_of_attention_maps(trained: dict[str, Run], tmp_path: Path, ask: Ask) -> None:
    run, path = trained["transformer"], tmp_path / "page.html"
    path.write_text(page([run]), encoding="utf-8")
    for name in ("emma", "a", "katherine"):
        maps = attention_maps(run, name)
        (found,) = ask(path, {"ask": "attention", "model": 0, "ids": [0, *run.vocabulary.encode(name)]})
        for layer, heads in enumerate(found):
            for head, rows in enumerate(heads):
                for position, row in enumerate(rows):
                    expected = maps.weights[layer, head, position]
                    assert len(row) == position + 1  # nothing above the diagonal
                    assert sum(row) == pytest.approx(1, abs=1e-12)
                    torch.testing.assert_close(
                        torch.tensor(row, dtype=torch.float32), expected[: position + 1], atol=1e-5, rtol=0
                    )
                    assert not expected[position + 1 :].any()


def test_the_fused_example_is_attention(ask: Ask) -> None:
    source = torch.Generator().manual_seed(7)
    q, k, v = (torch.randn(length, 5, generator=source, dtype=torch.float64) * 3 for length in (1, 11, 11))
    expected = manual(
        q[None, None], k[None, None], v[None, None], mask=None, causal=False, scale=None, dropout_p=0.0
    )
    question = {"ask": "fused", "q": q[0].tolist(), "k": k.tolist(), "v": v.tolist()}
    for found in ask(None, *(question | {"tile": tile} for tile in (1, 3, 4, 11, 64))):
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected[0, 0, 0])


def test_text_goes_on_beyond_the_context_as_generate_writes_it(
    trained: dict[str, Run], tmp_path: Path, ask: Ask
) -> None:
    run, path = trained["text"], tmp_path / "page.html"
    path.write_text(page([run]), encoding="utf-8")
    length = 3 * run.model.block_size
    for options in (
        GenerateOptions(seed=4),
        GenerateOptions(seed=4, prefix="anna", temperature=0.6, top_p=0.9),
    ):
        expected = continue_text(run, options, length)
        begun = [number - 1 for number in run.vocabulary.encode(options.prefix or "\n")]
        question = {"ask": "text", "model": 0, "ids": begun, "count": length, "seed": "4"}
        filters = {"temperature": options.temperature, "topP": options.top_p}
        assert ask(path, question | filters) == expected.texts
    assert ask(path, {"ask": "lookups", "model": 0, "count": 200}) == [200]  # not all characters again
