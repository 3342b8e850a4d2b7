"""Runs to share, and their pages."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flashmore.share.page
from flashmore.config import TrainConfig
from flashmore.data.items import Split
from flashmore.data.vocabulary import Vocabulary
from flashmore.models.config import ModelConfig
from flashmore.models.registry import build
from flashmore.runs import Checkpoint, Run, Settings, State
from flashmore.share.export import export
from flashmore.training.loop import train

MODULES = Path(flashmore.share.page.__file__).with_name("page")
CHARACTERS = "abcdefg é"
CONTEXT = 9
SPLIT = Split(("abba", "cab", "dé", "fa ge", "gag"), ("bad",), ("face",), leak_share=None)


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Makes a run of a model whose random weights are large enough for clear preferences."""

    def make(
        model: str, *, split: Split = SPLIT, factor: float = 2.0, characters: str = CHARACTERS, **sizes: Any
    ) -> Run:
        vocabulary = Vocabulary.from_items([characters])
        given = {"block_size": CONTEXT, "n_layer": 3, "n_head": 2, "n_embd": 12} | sizes
        config = ModelConfig(model, vocabulary.size, **given)
        weights = {name: value * factor for name, value in build(config, seed=1).state_dict().items()}
        if model == "bigram":
            weights["logits"] = weights["logits"].normal_()
        path = tmp_path_factory.mktemp("runs") / model
        with Run.create(path, Settings({}, {}, config, vocabulary, split, None, {})) as run:
            run.begin(Checkpoint(weights, {}, State(0, 10)))
        return run

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A Transformer and a Bigram on some built-in names, and a Transformer on a text."""
    folder = tmp_path_factory.mktemp("trained")
    items, text = folder / "some names.txt", folder / "text.txt"
    source = Path(flashmore.__file__).with_name("data") / "names.txt"
    names = source.read_text(encoding="utf-8").split()[::40]
    items.write_text("\n".join(names), encoding="utf-8")
    text.write_text("\n".join(names), encoding="utf-8")
    common: dict[str, Any] = {"max_steps": 120, "eval_interval": 60, "device": "cpu", "samples_every": 40}
    configs = {
        "transformer": TrainConfig(file=items, n_layer=2, n_embd=32, **common),
        "bigram": TrainConfig(file=items, model="bigram", **common),
        "text": TrainConfig(file=text, mode="text", preset="shakespeare-fast", block_size=24, **common),
    }
    return {name: Run.open(train(config, folder / name).run) for name, config in configs.items()}


@pytest.fixture(scope="session")
def hugging_face(trained: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both Transformers as folders of Hugging Face's, to copy or read."""
    folder = tmp_path_factory.mktemp("hf")
    for kind in ("transformer", "text"):
        export(trained[kind], "hf", folder / kind)
    return {kind: folder / kind for kind in ("transformer", "text")}


@pytest.fixture(scope="session")
def ask() -> Callable[..., list[Any]]:
    """Asks the page's JavaScript engine questions, in Node.js; see engine.mjs."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js, and it is not installed")

    def answers(page: Path | None, *questions: dict[str, Any]) -> list[Any]:
        harness = Path(__file__).with_name("engine.mjs")
        done = subprocess.run(
            [node, harness, MODULES, page or "-"],
            input=json.dumps(questions),
            capture_output=True,
            encoding="utf-8",
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout))

    return answers
