"""Before any work: an option that would change nothing is refused, and an output that cannot be written."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from flashmore.config import TrainConfig
from flashmore.training.loop import train

Call = Callable[..., CompletedProcess[str]]
Refusal = Callable[..., str]


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("to be or not to be, that is the question. " * 40, encoding="utf-8")
    config = TrainConfig(
        file=folder / "text.txt",
        mode="text",
        block_size=8,
        model="bigram",
        max_steps=3,
        batch_size=4,
        device="cpu",
    )
    train(config, folder / "run")
    return folder / "run"


@pytest.mark.parametrize(
    "words",
    [
        "train --model bigram --attention cudnn",
        "train --model gru --attention=manual",
        "train --model mlp --attention_dropout 0.1",
        "train --model bow --n-head 2",
        "train --model rnn --n-layer 2",
        "train --model bigram --n-embd 8",
        "train --model bigram --dropout 0.1",
        "train --model gru --muon-learning-rate 0.1",
        "train --optimizer adamw --muon-learning-rate 0.1",
        "train --lr-schedule constant --min-lr-ratio 0.1",
        "train --split makemore --split-seed 1",
        "train --mode text --split-seed 1",
        "train --encoding latin-1",
        "train --speedups none exact",
        "train --speedups none pack",
        "bench step --speedups pack",
        "bench step --eval-interval 3",
        "bench step --model bigram --attention flash",
        "bench ablation --model gru --n-head 2",
        "bench ablation --log-interval 2",
        "explain --mask-dims 3",
        "explain --device cpu --capability 9.0",
        "upgrade . --seconds 5",
        "upgrade . --even-if-slower",
    ],
)
def test_what_would_change_nothing_is_refused(
    words: str, call: Call, refusal: Refusal, tmp_path: Path
) -> None:
    given = words.split()
    if given[0] == "train":
        given += ["--out", str(tmp_path / "run")]
    message = refusal(call(*given), 2)
    option = next(word.partition("=")[0] for word in reversed(words.split()) if word.startswith("--"))
    assert option.replace("_", "-") in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [-5, 0, 20, 500])
def test_a_length_for_a_run_on_items_is_refused(
    trained: Path, call: Call, refusal: Refusal, length: int
) -> None:
    assert "--length" in refusal(call("generate", trained, "--length", length), 2)


def test_a_distance_without_a_name_is_refused(trained: Path, call: Call, refusal: Refusal) -> None:
    assert "--like" in refusal(call("generate", trained, "--max-distance", 2), 2)


@pytest.mark.parametrize("words", ["--length -5", "--length 0", "--count 0", "--nearest", "--min-length 3"])
def test_what_a_run_on_text_cannot_use_is_refused(
    text_run: Path, call: Call, refusal: Refusal, words: str
) -> None:
    assert words.split()[0] in refusal(call("generate", text_run, *words.split()), 2)
    assert call("generate", text_run, "--length", 9, "--seed", 1).returncode == 0


@pytest.mark.parametrize(
    "words",
    [
        "train --model wavenet --n-layer 2",
        "train --model bigram --attention auto",
        "train --optimizer muon --muon-learning-rate 0.1",
        "train --preset names-long --muon-learning-rate 0.1",
        "train --min-lr-ratio 0.1",
    ],
)
def test_what_changes_something_is_taken(words: str, call: Call, names_file: Path, tmp_path: Path) -> None:
    verb, *options = words.split()
    small: tuple[object, ...] = (
        "--max-steps",
        2,
        "--batch-size",
        4,
        "--n-embd",
        8,
        "--device",
        "cpu",
        "--out",
        tmp_path / "run",
    )
    if "bigram" in options:
        small = (*small[:4], *small[6:])
    done = call(verb, names_file, *options, *small)
    assert done.returncode == 0, done.stderr


def paths_that_cannot_be(folder: Path, ending: str) -> dict[str, Path]:
    (folder / "file").write_text("mine")
    (folder / f"folder{ending}").mkdir()
    return {
        "below a file": folder / "file" / f"x{ending}",
        "a folder": folder / f"folder{ending}",
        "a long name": folder / f"{'x' * 300}{ending}",
        "a name that is too long for a moment": folder / f"{'x' * (255 - len(ending))}{ending}",
        "a disk that takes none": Path(f"/proc/x{ending}"),
        "below a long name": folder / ("x" * 300) / f"x{ending}",
    }


KINDS = [
    "below a file", "a folder", "a long name", "a name that is too long for a moment",
    "a disk that takes none", "below a long name",
]  # fmt: skip
COMMANDS = {
    "bench step --out": ".json",
    "bench step --picture": ".png",
    "bench ablation --out": ".json",
    "bench attention --out": ".json",
    "bench attention --picture": ".svg",
    "choose --out": ".json",
    "compare --models bigram --max-steps 10000000 --picture": ".png",
    "compare --models bigram --max-steps 10000000 --out": "",
    "demo --picture": ".png",
    "demo --out": "",
    "report {record} --out": ".html",
    "report {record} --markdown": ".md",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    command: str, kind: str, call: Call, refusal: Refusal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "a folder" and COMMANDS[command] == "":
        pytest.skip("a folder is what is wanted here")
    if kind == "a disk that takes none" and not Path("/proc/self").exists():
        pytest.skip("needs /proc")
    monkeypatch.chdir(tmp_path)
    path = paths_that_cannot_be(tmp_path, COMMANDS[command])[kind]
    record = tmp_path / "record.json"
    record.write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    *words, option = command.format(record=record).split()
    message = refusal(call(*words, option, path), 1)  # nothing precedes it, not even progress
    assert option in message.partition("\n")[0]
    assert sorted(tmp_path.rglob("*")) == before, "the check left something behind"


def test_a_path_that_can_be_written_is_left_as_it_was_until_then(
    call: Call, refusal: Refusal, tmp_path: Path
) -> None:
    record = tmp_path / "record.json"
    record.write_text("mine")
    page = tmp_path / "new" / "folders" / "page.html"
    refusal(call("report", record, "--out", page), 2)  # no record
    assert record.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["record.json"]
