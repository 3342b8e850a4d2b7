"""Commands that share a run: what they write, and what they refuse."""

import json
import webbrowser
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

from flashmore import specs
from flashmore.config import TrainConfig
from flashmore.errors import ConfigError
from flashmore.runs import Checkpoint, Run
from flashmore.share import page as sharing
from flashmore.share.page import page
from flashmore.training.loop import train

Call = Callable[..., CompletedProcess[str]]
Refused = Callable[..., str]


@pytest.fixture
def refused(call: Call, refusal: Callable[..., str]) -> Refused:
    """The message of a command that is refused."""
    return lambda *words: refusal(call(*words), 2)


@pytest.fixture(scope="module")
def bigram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bigram")
    config = TrainConfig(model="bigram", max_steps=2, eval_interval=1, device="cpu")
    return Path(train(config, folder / "run").run)


@pytest.fixture(scope="module")
def on_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("to be, or not to be: that is the question\n" * 40, encoding="utf-8")
    config = TrainConfig(
        file=folder / "text.txt",
        mode="text",
        preset="shakespeare-fast",
        block_size=20,
        max_steps=2,
        device="cpu",
    )
    return Path(train(config, folder / "run").run)


def test_page_writes_one_file(bigram: Path, call: Call, tmp_path: Path) -> None:
    done = call("page", bigram, "--out", tmp_path / "new" / "names.html")
    assert (done.returncode, done.stdout) == (0, "")
    written = (tmp_path / "new" / "names.html").read_bytes()
    assert f"names.html: {len(written):,} bytes" in done.stderr
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["names.html"]
    text = written.decode()
    assert "default-src 'none'" in text
    assert str(bigram) not in text
    assert str(bigram.parent) not in text


def test_a_pack_without_items_makes_a_page_without_labels(bigram: Path, call: Call, tmp_path: Path) -> None:
    assert call("pack", bigram, "--out", tmp_path / "names.pack").returncode == 0
    done = call("page", tmp_path / "names.pack", "--out", tmp_path / "names.html")
    assert done.returncode == 0, done.stderr
    assert "not the names it learned from" in (tmp_path / "names.html").read_text(encoding="utf-8")


def test_play_opens_the_page_in_the_runs_folder(
    bigram: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def browser(url: str) -> bool:
        opened.append(url)
        return len(opened) == 1

    page = bigram / "page.html"
    monkeypatch.setattr(webbrowser, "open", browser)
    assert call("play", bigram).returncode == 0
    assert opened == [page.as_uri()]
    assert Run.open(bigram).read_result() is not None  # it is still a run
    assert f"open {page} yourself" in call("play", bigram).stderr


def test_train_opens_the_page_at_the_end(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    words = ("--model", "bigram", "--max-steps", 2, "--eval-interval", 1, "--device", "cpu")
    done = call("train", *words, "--out", tmp_path / "run", "--open")
    assert done.returncode == 0, done.stderr
    assert opened == [(tmp_path / "run" / "page.html").as_uri()]


def test_page_refuses_what_it_cannot_show(
    bigram: Path, on_text: Path, refused: Refused, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "page.html")
    assert "at least one run" in refused("page", *out)
    assert "1 to 4 runs" in refused("page", *[bigram] * 5, *out)
    assert "runs of one kind" in refused("page", bigram, on_text, *out)
    assert "ends in .html" in refused("page", bigram, "--out", tmp_path / "page.pdf")
    assert "no such folder" in refused("page", tmp_path / "nothing", *out)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in bigram.iterdir():
        if path.suffix != ".safetensors":
            (damaged / path.name).write_bytes(path.read_bytes())
    assert "no checkpoint" in refused("page", damaged, *out)
    assert not (tmp_path / "page.html").exists()


def test_a_page_refuses_models_that_are_too_large_or_unknown(
    bigram: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.open(bigram)
    monkeypatch.setattr(sharing, "MOST_PARAMETERS", 100)
    with pytest.raises(ConfigError, match="at most 100 parameters"):
        page([run])
    spec = replace(specs.model_spec("bigram"), page=False)
    monkeypatch.setattr(sharing, "model_spec", lambda name: spec)
    with pytest.raises(ConfigError, match="a model that a page can compute"):
        page([run])


def test_a_page_refuses_weights_that_are_not_finite(bigram: Path, tmp_path: Path, refused: Refused) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in bigram.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    run = Run.open(copy)
    saved = run.load_weights()
    saved["logits"][0, 0] = torch.nan
    last = run.load_state()
    run.save_checkpoint(Checkpoint(saved, {}, replace(last, best_step=last.step)))
    assert "training diverged" in refused("page", copy, "--out", tmp_path / "page.html")


def test_attention_prints_what_is_read_and_draws_it(on_text: Path, call: Call, tmp_path: Path) -> None:
    picture = tmp_path / "maps.png"
    done = call("attention", on_text, "to be, or", "--positions", "2:7", "--picture", picture)
    assert done.returncode == 0, done.stderr
    assert "difference from flash" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    (maps,) = json.loads(call("attention", on_text, "to be", "--json").stdout)
    assert maps["characters"] == ["t", "o", " ", "b", "e"]
    assert maps["difference"] < 1e-5
    rows = torch.tensor(maps["weights"])
    assert rows.shape == (2, 4, 5, 5)
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 4, 5))
    assert not rows.triu(1).any()


def test_attention_refuses_what_it_cannot_compute(
    bigram: Path, on_text: Path, refused: Refused, tmp_path: Path
) -> None:
    assert "a run of a model with attention" in refused("attention", bigram, "anna")
    assert "characters in the model's vocabulary" in refused("attention", on_text, "Ω")
    assert "fits into the model's context" in refused("attention", on_text, "to be " * 10)
    assert "1 to 8 names" in refused("attention", on_text)
    for bad in ("3", "a:b", "-1:2"):
        assert "positions as FIRST:LAST" in refused("attention", on_text, "to be", f"--positions={bad}")
    assert "positions of the text" in refused("attention", on_text, "to be", "--positions", "9:12")
    assert "ends in .png" in refused("attention", on_text, "to be", "--picture", tmp_path / "maps.jpg")
    sizes: dict[str, Any] = {"vocab_size": 5, "block_size": 8, "max_steps": 1}
    train(TrainConfig(mode="text", preset="shakespeare-fast", device="cpu", **sizes), tmp_path / "ids")
    assert "a run on ids without their characters" in refused("attention", tmp_path / "ids", "abc")


def test_export_prints_its_check(bigram: Path, call: Call, tmp_path: Path) -> None:
    done = call("export", bigram, "--to", "safetensors", "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["largest_difference"] == 0
    assert json.loads((tmp_path / "out" / "check.json").read_text(encoding="utf-8")) == made


def test_export_names_a_missing_package(
    bigram: Path, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flashmore.share.export import FORMATS

    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], packages=("onnx", "no_such_package")))
    assert "pip install 'flashmore[onnx]'" in refused(
        "export", bigram, "--to", "onnx", "--out", tmp_path / "out"
    )
