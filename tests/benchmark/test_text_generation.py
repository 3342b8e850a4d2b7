"""benchmarks/text_generation.py gives figures only for a model that writes the same text as ours."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import text_generation
from flashmore.models.config import ModelConfig
from flashmore.models.onednn import pack
from flashmore.models.registry import build
from forks import Forks

SIZES = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8}


class Theirs(nn.Module):
    """A model with the interface of nanoGPT's."""

    def __init__(self, model: nn.Module, heat: float = 1.0) -> None:
        super().__init__()
        self.model, self.heat = model, heat

    def forward(self, ids: Tensor) -> tuple[Tensor, None]:
        return self.model(ids), None

    @torch.no_grad()
    def generate(self, ids: Tensor, count: int, temperature: float = 1.0, top_k: int | None = None) -> Tensor:
        for _ in range(count):
            logits = self(ids[:, -SIZES["block_size"] :])[0][:, -1] / (temperature * self.heat)
            if top_k is not None:
                smallest = logits.topk(top_k).values[:, -1:]
                logits = logits.masked_fill(logits < smallest, -torch.inf)
            ids = torch.cat((ids, torch.multinomial(logits.softmax(-1), 1)), dim=1)
        return ids


def model(seed: int) -> nn.Module:
    config = ModelConfig("transformer", text_generation.V, **SIZES)  # type: ignore[arg-type]
    made = build(config, seed).eval()
    with torch.no_grad():
        made.get_parameter("lm_head.weight").mul_(4)
    return made


def test_the_cases_of_a_model_that_writes_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_generation, "SIZES", {"tiny": SIZES})
    theirs, ours = Theirs(model(1)), pack(model(1))
    text_generation.check_greedy(theirs, ours, SIZES["block_size"])
    text_generation.check_draws(theirs, ours)
    cases: list[dict[str, Any]] = list(text_generation.timed("tiny", theirs, ours, 3, rounds=2))
    assert [case["where"] for case in cases] == ["within", "beyond", "strided"]
    for case in cases:
        assert case["ratio"]["pairs"] == 2
        for side, blocks in case["samples_ms"].items():
            assert len(blocks) == 2
            assert case["characters_per_s"][side] == pytest.approx(3000 / case["step_ms"][side]["median"])


def test_another_model_and_another_distribution_have_no_figures() -> None:
    ours = pack(model(1))
    with pytest.raises(SystemExit, match="the greedy texts differ"):
        text_generation.check_greedy(Theirs(model(2)), ours, SIZES["block_size"])
    with pytest.raises(SystemExit, match="not the same model"):
        text_generation.check_draws(Theirs(model(2)), ours)
    with pytest.raises(SystemExit, match="nanoGPT draws from another distribution"):
        text_generation.check_draws(Theirs(model(1), heat=2.0), ours)


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path, forks: Forks) -> None:
    done = forks.run((Path(text_generation.__file__), "--nanogpt", tmp_path), os.environ)
    assert done.returncode == 2
    assert "no model.py" in done.stderr
