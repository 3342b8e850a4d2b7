"""Whatever a user gives: an exit code, a message in three parts, nothing half-written, nothing lost."""

import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from matplotlib.image import imsave

Call = Callable[..., CompletedProcess[str]]
Contents = Callable[[Path], dict[str, bytes]]


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def hollow_out(path: Path) -> None:
    path.write_text("{}")


CHECKPOINTS = "step-*"
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (cut_short, CHECKPOINTS),
    "bit-flipped": (flip_bit, CHECKPOINTS),
    "without-checkpoints": (Path.unlink, CHECKPOINTS),
    "hollow": (hollow_out, CHECKPOINTS),
    "other-metrics": (flip_bit, "metrics.jsonl"),
    "altered": (flip_bit, "config.json"),
    "splitless": (Path.unlink, "split.json"),
}


@pytest.fixture(scope="module")
def material(names_file: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files and runs to trip over."""
    folder = tmp_path_factory.mktemp("material")
    shutil.copy(names_file, folder / "names.txt")
    (folder / "empty.txt").touch()
    (folder / "blank.txt").write_text("\n \n\t\n")
    (folder / "one.txt").write_text("anna\n")
    (folder / "two.txt").write_text("anna\nbob\nanna\n")
    (folder / "latin-1.txt").write_bytes("anna\nbob\nJosé\n".encode("latin-1"))
    (folder / "nothing").mkdir()
    (folder / "table.csv").write_text("name,year\nanna,1\nbob,2\n")
    (folder / "same.txt").write_text("anna\n" * 9)
    (folder / "million.txt").write_text("a" * 1_000_000 + "\n")
    (folder / "long.txt").write_text("anna\n" + "a" * 10_000 + "\nbob\n")
    imsave(folder / "picture.png", np.random.default_rng(0).random((8, 8)))
    shutil.copytree(trained, folder / "run")
    for name, (damage, pattern) in DAMAGES.items():
        shutil.copytree(trained, folder / name)
        for path in (folder / name).glob(pattern):
            damage(path)
    return folder


# Words, exit code, and what the message must hold. Words are those of a small training unless they begin with
# a command; {here} stands for the folder with the material.
REFUSED = [
    # what to learn from
    ("nowhere.txt", 2, ("nowhere.txt", "No such file", "a readable file")),
    ("{here}/nothing", 2, ("{here}/nothing", "none")),
    ("{here}", 2, ("latin-1.txt", "line 3")),
    ("{here}/table.csv --column nmae", 2, ("'nmae'", "none with this name", "name, year")),
    ("--column name", 2, ("--column", "the built-in names")),
    ("{here}/names.txt --mode text --column name", 2, ("--mode text", "--column")),
    ("- --mode text", 2, ("stdin",)),
    ("{here}/same.txt", 2, ("at least 3 different items", "1 different item")),
    ("{here}/million.txt", 2, ("line 1", "1,000,000 characters")),
    ("{here}/names.txt/below", 2, ("Not a directory",)),
    ("{here}/empty.txt", 2, ("an empty file",)),
    ("{here}/blank.txt", 2, ("only blank lines",)),
    ("{here}/picture.png", 2, ("picture.png", "line 1", "0x89 is not utf-8", "binary")),
    ("{here}/picture.png --encoding latin-1", 2, ("U+", "binary file")),
    ("{here}/latin-1.txt", 2, ("line 3", "byte 0xe9", "--encoding")),
    ("{here}/names.txt --encoding klingon", 2, ("'klingon'", "latin-1")),
    ("{here}/one.txt", 2, ("at least 3 different items", "1 different item", "100/0/0")),
    ("{here}/two.txt", 2, ("at least 3 different items", "2 different items")),
    ("{here}/one.txt --split makemore", 2, ("at least 10 lines",)),
    ("{here}/long.txt", 2, ("line 2", "10,000 characters", "1,000")),
    # sizes and numbers
    ("{names} --model transformer --n-head 3", 2, ("3 heads and 64 channels", "1, 2, 4, 8")),
    ("{names} --max-steps 0", 2, ("--max-steps", "0", "from 1")),
    ("{names} --max-steps -5", 2, ("--max-steps", "-5")),
    ("{names} --batch-size 0", 2, ("--batch-size",)),
    ("{names} --batch-size -1", 2, ("--batch-size", "-1")),
    ("{names} --n-layer 0", 2, ("--n-layer",)),
    ("{names} --n-embd -64", 2, ("--n-embd", "-64")),
    ("{names} --model mlp --n-embd 100000000000", 2, ("100000000000", "1,000,000")),
    ("{names} --n-head 0", 2, ("--n-head",)),
    ("{names} --eval-interval 0", 2, ("--eval-interval",)),
    ("{names} --log-interval -1", 2, ("--log-interval",)),
    ("{names} --learning-rate 0", 2, ("--learning-rate", "above 0")),
    ("{names} --learning-rate nan", 2, ("--learning-rate", "nan")),
    ("{names} --learning-rate inf", 2, ("--learning-rate", "inf")),
    ("{names} --learning-rate -1e-3", 2, ("--learning-rate", "-0.001")),
    ("{names} --dropout nan", 2, ("--dropout", "nan")),
    ("{names} --dropout 1", 2, ("--dropout", "below 1")),
    ("{names} --attention-dropout 1.5", 2, ("--attention-dropout",)),
    ("{names} --beta2 1", 2, ("--beta2",)),
    ("{names} --grad-clip nan", 2, ("--grad-clip", "nan")),
    ("{names} --grad-clip -1", 2, ("--grad-clip", "-1")),
    ("{names} --weight-decay nan", 2, ("--weight-decay", "nan")),
    ("{names} --warmup-steps -1", 2, ("--warmup-steps", "-1")),
    ("{names} --threads -1", 2, ("--threads", "-1")),
    ("{names} --seed -1", 2, ("--seed", "-1")),
    ("{names} --split-seed 99999999999999999999", 2, ("--split-seed",)),
    ("{names} --weight-decay inf", 2, ("--weight-decay",)),
    ("{names} --grad-clip inf", 2, ("--grad-clip",)),
    ("{names} --threads 99999999999", 2, ("--threads",)),
    ("{names} --model transformer --attention manual --batch-size 9999999999999999999", 2, ("--batch-size",)),
    # shares
    ("{names} --split nonsense", 2, ("'nonsense'", "80/10/10", "makemore")),
    ("{names} --split 80/10/5", 2, ("80/10/5", "add up to 100")),
    ("{names} --split 0/50/50", 2, ("0/50/50",)),
    ("{names} --split 80/20", 2, ("80/20",)),
    ("{names} --split 120/-10/-10", 2, ("120/-10/-10",)),
    ("{names} --split nan/10/10", 2, ("nan/10/10",)),
    # what this machine cannot do
    ("{names} --model transformer --attention efficient", 2, ("'efficient'", "CPU", "sdpa, math, flash")),
    ("{names} --model transformer --attention cudnn", 2, ("'cudnn'", "CPU")),
    pytest.param(
        "{names} --device cuda",
        2,
        ("--device cuda", "finds none", "cpu"),
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
    ),
    pytest.param(
        "{names} --device mps",
        2,
        ("--device mps", "finds none", "cpu"),
        marks=pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is Apple's GPU"),
    ),
    # where it should go
    ("{names} --out {here}/names.txt", 2, ("a file",)),
    ("{names} --out {here}/run", 2, ("--resume {here}/run",)),
    ("{names} --out {here}", 2, ("a folder that contains",)),
    ("{names} --out {here}/names.txt/run", 1, ("Not a directory",)),
    # runs that are none
    ("generate nowhere", 2, ("nowhere", "no such folder", "flashmore train")),
    ("generate {here}", 2, ("without config.json",)),
    ("generate {names}", 2, ("a file",)),
    ("score {here} anna", 2, ("without config.json",)),
    ("compare {here}", 2, ("without config.json",)),
    ("train --resume {here}", 2, ("without config.json",)),
    ("train --resume nowhere --max-steps 9", 2, ("no such folder",)),
    ("train --resume {here}/run --max-steps 59", 2, ("59", "60 or more")),
    # damaged ones
    *(
        (f"{words} {{here}}/{run}{more}", 2, (run, told))
        for words, more in (("generate", ""), ("score", " dan"), ("compare", ""), ("train --resume", ""))
        for run, told in (
            ("truncated", "safetensors"),
            ("bit-flipped", "safetensors"),
            ("without-checkpoints", "no checkpoint"),
            ("hollow", "safetensors"),
            ("altered", "config.json"),
            ("splitless", "split.json"),
        )
    ),
    ("train --resume {here}/other-metrics", 2, ("metrics.jsonl", "altered")),
    # what is asked of a run
    ("score {here}/run zoé", 2, ("'z' (U+007A), 'é' (U+00E9)", "a b d e i")),
    ("score {here}/run", 2, ("names to score", "none")),
    ("score {here}/run anna --file {here}/names.txt", 2, ("names to score", "both")),
    ("score {here}/run anna --column name", 2, ("--file with --column",)),
    ("score {here}/run --file {here}/table.csv --column nmae", 2, ("'nmae'", "name, year")),
    ("generate {here}/run --prefix Q", 2, ("'Q' (U+0051)", "a b d e i")),
    ("generate {here}/run --prefix dandan", 2, ("6 characters", "at most 4")),
    ("generate {here}/run --count 0", 2, ("--count",)),
    ("generate {here}/run --count -1", 2, ("--count", "-1")),
    ("generate {here}/run --temperature 0", 2, ("--temperature", "--top-k 1")),
    ("generate {here}/run --temperature nan", 2, ("--temperature", "nan")),
    ("generate {here}/run --top-k 0", 2, ("--top-k",)),
    ("generate {here}/run --top-p 0", 2, ("--top-p",)),
    ("generate {here}/run --top-p nan", 2, ("--top-p", "nan")),
    ("generate {here}/run --top-p 1.1", 2, ("--top-p", "1.1")),
    ("generate {here}/run --seed -1", 2, ("--seed", "-1")),
    ("score {here}/run caf\udce9", 2, ("UTF-8", "udce9")),
]  # fmt: skip


def words_of(given: str, material: Path) -> list[str]:
    words = [word.format(here=material, names=material / "names.txt") for word in given.split()]
    if words[0] in ("train", "generate", "score", "compare"):
        return words
    model = [] if "--model" in words else ["--model", "bigram"]
    device = [] if "--device" in words else ["--device", "cpu"]
    return ["train", *words, *model, *device]


@pytest.mark.parametrize(("given", "code", "told"), REFUSED)
def test_it_is_refused_with_a_reason_and_nothing_is_written(
    given: str,
    code: int,
    told: tuple[str, ...],
    material: Path,
    call: Call,
    refusal: Callable[..., str],
    contents: Contents,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(material)
    message = refusal(call(*words_of(given, material)), code)
    for part in told:
        assert part.format(here=material) in message
    assert contents(material) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("nowhere.txt", 2),
        ("generate {here}/bit-flipped --json", 2),
        ("{names} --out {here}/names.txt/run", 1),
    ],
)
def test_a_process_ends_with_the_same_code_and_message(
    given: str, code: int, material: Path, process: Call, call: Call, refusal: Callable[..., str]
) -> None:
    words = words_of(given, material)
    assert refusal(process(*words), code) == refusal(call(*words), code)


def test_a_kernel_that_knows_no_dropout_is_told_alone(
    names_file: Path, call: Call, refusal: Callable[..., str], tmp_path: Path
) -> None:
    words = ("--model", "transformer", "--attention", "flash", "--attention-dropout", 0.1, "--device", "cpu")
    message = refusal(call("train", names_file, *words, "--out", tmp_path / "run"), 2)
    for part in ("'flash'", "dropout_p = 0.1", "manual, sdpa, math"):
        assert part in message
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_told(
    quick: tuple[object, ...], call: Call, refusal: Callable[..., str], tmp_path: Path
) -> None:
    tmp_path.chmod(0o500)
    assert "write permission" in refusal(call(*quick, "--out", tmp_path / "run"), 1)
    assert not list(tmp_path.iterdir())


def test_training_that_goes_astray_stops_with_a_reason(
    names_file: Path, call: Call, refusal: Callable[..., str], tmp_path: Path
) -> None:
    astray = (
        "--learning-rate",
        1e38,
        "--warmup-steps",
        0,
        "--grad-clip",
        0,
        "--lr-schedule",
        "constant",
        "--device",
        "cpu",
    )
    words = ("train", names_file, "--model", "mlp", "--max-steps", 40, *astray, "--out", tmp_path / "run")
    message = refusal(call(*words), 1, after_progress=True)
    assert "wanted: finite" in message
    assert "--learning-rate" in message


@pytest.mark.parametrize("split", ["80/10/10", "90/0/10"])
def test_weights_that_go_astray_in_the_last_step_are_told(
    split: str, names_file: Path, call: Call, refusal: Callable[..., str], tmp_path: Path
) -> None:
    astray = (
        "--learning-rate",
        1e38,
        "--warmup-steps",
        0,
        "--grad-clip",
        0,
        "--lr-schedule",
        "constant",
        "--device",
        "cpu",
    )
    words = ("train", names_file, "--model", "mlp", "--max-steps", 1, *astray, "--split", split)
    refusal(call(*words, "--out", tmp_path / "run"), 1, after_progress=True)


@pytest.mark.parametrize(
    "free",
    [2**28, pytest.param(None, marks=pytest.mark.faults)],  # the machine's own takes gigabytes of trials
    ids=["little memory", "the machine's memory"],
)
@pytest.mark.parametrize(
    ("model", "attention"), [("bigram", "auto"), ("transformer", "manual"), ("transformer", "auto")]
)
def test_a_batch_that_no_memory_holds_is_told(
    free: int | None,
    model: str,
    attention: str,
    names_file: Path,
    call: Call,
    refusal: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if free is not None:
        monkeypatch.setattr("flashmore.training.memory.free_bytes", lambda _: free)
        monkeypatch.setattr("flashmore.backends.choose.BATCH_BYTES", 2**18)
    kind = ("--model", model, "--attention", attention, "--device", "cpu", "--max-steps", 1)
    words = ("train", names_file, *kind, "--batch-size", 10**12, "--out", tmp_path / "run")
    message = refusal(call(*words), 1, after_progress=True)
    assert re.search(r"about [\d,]+ GiB needed, [\d,.]+ GiB free", message)
    assert re.search(r"--batch-size \d+, which fits", message)


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="needs a script in the place of the compiler")
def test_a_compiler_that_does_not_work_is_told(
    names_file: Path, process: Call, refusal: Callable[..., str], tmp_path: Path
) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    words = shlex.split(
        "--speedups compile --max-steps 1 --batch-size 4 --n-embd 8 --n-layer 1 --n-head 1 --device cpu"
    )
    done = process(
        "train",
        names_file,
        *words,
        "--out",
        tmp_path / "run",
        CXX=str(compiler),
        FLASHMORE_CACHE=str(tmp_path),
    )
    assert "torch.compile to succeed" in refusal(done, 1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("logs", ["bogus", "help"])
def test_logs_that_pytorch_does_not_know_are_told(
    logs: str, names_file: Path, process: Call, refusal: Callable[..., str], tmp_path: Path
) -> None:
    done = process("train", names_file, "--out", tmp_path / "run", TORCH_LOGS=logs)
    assert f"TORCH_LOGS\n found: '{logs}'" in refusal(done, 2)
    assert not (tmp_path / "run").exists()
