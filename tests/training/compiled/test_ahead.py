"""Steps compiled ahead of time: what is found in the cache, for which runs, and what must not be executed."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flashmore.config import TrainConfig
from flashmore.errors import ConfigError, StorageError
from flashmore.models.config import ModelConfig
from flashmore.training.compiled import ahead, libraries
from flashmore.training.compiled.program import TOKENS_MULTIPLE, Program, program_of
from flashmore.training.warm import compile_in_background, warm
from forks import Forks

CPU = torch.device("cpu")
CONFIG = TrainConfig(device="cpu", optimizer="adamw", batch_size=8, ngram_smoothing=0.0)
SIZES = ModelConfig("transformer", vocab_size=27, block_size=16, n_layer=1, n_embd=16, n_head=2)
PACKED = ("pack", "compile")


def program(config: TrainConfig = CONFIG, sizes: ModelConfig = SIZES, **changes: Any) -> Program:
    made = program_of(replace(config, **changes), sizes, CPU, PACKED)
    assert made is not None
    return made


def find(made: Program, *, automatic: bool = False) -> Path | None:
    return libraries.find(made.digest, automatic=automatic)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLASHMORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def kept(cache: Path, tmp_path: Path) -> Path:
    """A file in the cache, as a library is kept there."""
    (tmp_path / "step.pt2").write_bytes(b"a library" * 100)
    libraries.keep(program().digest, tmp_path / "step.pt2", automatic=False)
    path = find(program())
    assert path is not None
    assert path.is_relative_to(cache)
    return path


# Which runs share a step.


def test_lists_with_other_characters_and_lengths_share_a_step() -> None:
    shared = program(sizes=replace(SIZES, vocab_size=32, block_size=11))
    assert shared.digest == program().digest
    assert (shared.model.vocab_size, shared.model.block_size) == (32, 16)
    longer, wider = (replace(SIZES, block_size=17), replace(SIZES, vocab_size=33))
    assert len({program().digest, program(sizes=longer).digest, program(sizes=wider).digest}) == 3


def test_what_is_an_input_of_a_step_is_not_part_of_its_name() -> None:
    other = program(learning_rate=0.5, weight_decay=0.25, max_steps=7, seed=1, warmup_steps=3)
    assert other.digest == program(sizes=replace(SIZES, init="gpt2")).digest == program().digest


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 9}, {"beta1": 0.8}, {"beta2": 0.8}, {"grad_clip": 2.0}, {"optimizer": "muon"},
     {"ngram_smoothing": 0.1}, {"dtype": "bfloat16"}],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_every_constant_of_a_step_is_part_of_its_name(changes: dict[str, Any]) -> None:
    assert program(**changes).digest != program().digest


def test_threads_mode_and_packing_are_part_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {program().digest}
    for speedups in (("compile",), ("pack", "compile", "max-autotune")):
        other = program_of(CONFIG, SIZES, CPU, speedups)
        assert other is not None
        names.add(other.digest)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    names.add(program().digest)
    monkeypatch.setenv("TORCHINDUCTOR_FREEZING", "1")
    names.add(program().digest)
    assert len(names) == 5


def test_other_devices_slices_and_accumulation_are_left_to_torch_compile() -> None:
    assert program_of(CONFIG, SIZES, torch.device("cuda"), PACKED) is None
    assert program_of(replace(CONFIG, slices=2), SIZES, CPU, PACKED) is None
    assert program_of(replace(CONFIG, grad_accum=2), SIZES, CPU, PACKED) is None


@pytest.mark.parametrize("rows", [1, 5])
def test_the_number_of_tokens_is_open_for_every_batch_size(rows: int) -> None:
    """Also where the example's tokens are no multiple of what they are padded to."""
    sizes = replace(SIZES, block_size=8)
    exported = ahead._exported(program(batch_size=rows, sizes=sizes, ngram_smoothing=0.4))
    inputs = [node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder"]
    lengths = [value.size(0) for value in inputs[-7:]]
    fixed = rows * 8 <= TOKENS_MULTIPLE  # then every batch is padded to all of its places
    assert [isinstance(length, int) for length in lengths] == [fixed, fixed, fixed, fixed, True, True, fixed]


# The cache.


def test_what_is_kept_is_found_and_is_the_users_alone(kept: Path) -> None:
    assert kept.read_bytes() == b"a library" * 100
    assert [path.stat().st_mode & 0o777 for path in (kept.parent, kept)] == [0o700, 0o600]
    assert find(program(), automatic=True) is None
    assert find(program(batch_size=9)) is None


@pytest.mark.parametrize("ending", [".pt2", ".json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "link"])
def test_a_damaged_library_is_not_found(kept: Path, ending: str, damage: str) -> None:
    path = kept.with_suffix(ending)
    data = path.read_bytes()
    if damage == "flip":
        path.write_bytes(data[:20] + bytes([data[20] ^ 1]) + data[21:])
    elif damage == "cut":
        path.write_bytes(data[:-1])
    else:
        path.unlink()
        if damage == "link":
            path.with_name("elsewhere").write_bytes(data)
            path.symlink_to("elsewhere")
    assert find(program()) is None


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
@pytest.mark.parametrize("what", ["cache", "folder", ".pt2", ".json"])
def test_what_others_can_change_is_not_executed(kept: Path, what: str) -> None:
    folders = {"cache": kept.parents[1], "folder": kept.parent}
    (folders.get(what) or kept.with_suffix(what)).chmod(0o722)
    assert find(program()) is None


def test_a_cache_that_cannot_be_written_is_told(cache: Path, tmp_path: Path) -> None:
    cache.write_text("a file", encoding="utf-8")
    (tmp_path / "step.pt2").write_bytes(b"a library")
    with pytest.raises(StorageError, match=str(cache)):
        libraries.keep(program().digest, tmp_path / "step.pt2", automatic=False)
    assert find(program()) is None


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_nothing_is_kept_where_others_can_change_it(kept: Path, tmp_path: Path) -> None:
    kept.parent.chmod(0o722)
    with pytest.raises(StorageError, match="others own or can change"):
        libraries.keep(program().digest, tmp_path / "step.pt2", automatic=False)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_a_folder_of_a_user_whose_group_may_write_is_his_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to("cache")
    before = os.umask(0o002)
    try:
        for name in ("cache", "link"):  # made by the first one
            monkeypatch.setenv("FLASHMORE_CACHE", str(tmp_path / name))
            assert libraries.writable_folder() == tmp_path / name / "compiled"
    finally:
        os.umask(before)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
@pytest.mark.parametrize("what", ["cache", "folder"])
def test_a_cache_that_others_can_change_is_named_once(
    kept: Path, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = {"cache": kept.parents[1], "folder": kept.parent}[what]
    folder.chmod(0o722)
    assert find(program()) is find(program()) is None
    assert capfd.readouterr().err.splitlines() == [
        f"compiled steps in the cache are not used: others own or can change {folder}"
    ]
    with pytest.raises(StorageError, match="others own or can change") as refused:
        libraries.writable_folder()
    assert str(folder) in refused.value.valid


def test_attention_is_chosen_where_the_compiler_fails(cache: Path) -> None:
    from torch._inductor import config as inductor
    from torch._inductor.utils import fresh_cache

    from flashmore.training.resolve import resolve_attention

    config = replace(CONFIG, batch_size=3)
    with fresh_cache(), inductor.patch({"cpp.cxx": (str(cache / "c++"),)}):
        found = resolve_attention("auto", config, SIZES, CPU, compiled=True)
    assert found is not None
    assert found.backend in {"manual", "math", "flash", "sdpa"}
    assert "compiled" not in found.why


def test_a_library_that_cannot_be_loaded_is_told(kept: Path) -> None:
    with pytest.raises(StorageError, match="TMPDIR"):
        libraries.load(kept)


def test_the_longest_unused_libraries_are_removed(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries, "MOST_LIBRARIES", 2)
    os.utime(kept, (1, 1))
    for rows in (20, 21):
        libraries.keep(program(batch_size=rows).digest, tmp_path / "step.pt2", automatic=False)
    assert find(program()) is None
    assert not kept.with_suffix(".json").exists()
    assert find(program(batch_size=20)) is not None


def test_temporary_files_of_killed_processes_are_removed(kept: Path, tmp_path: Path) -> None:
    old, new = (kept.with_name(f".{kept.name}.{digit * 16}.tmp") for digit in "ab")
    for path in (old, new):
        path.write_bytes(b"half a library")
    os.utime(old, (1, 1))
    libraries.keep(program().digest, tmp_path / "step.pt2", automatic=False)
    assert not old.exists()
    assert new.exists()
    new.unlink()


# Training with them.

LISTS = {
    "first": [a + b + c for a in "bdmnrst" for b in "aeio" for c in ("n", "ra", "la", "mo", "ninalolo", "")],
    "second": [a + b + c for a in "бдмнрст" for b in "аеио" for c in ("н", "ра", "лалала", "")],
}


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("lists")
    for name, items in LISTS.items():
        (folder / name).write_text("\n".join(items), encoding="utf-8")
    return {name: folder / name for name in LISTS}


COMMANDS = """
import json, sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from flashmore.cli.main import main

for words in json.loads(sys.argv[1]):
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = main(words)
    print(json.dumps((code, out.getvalue(), err.getvalue())))
"""
"""Several commands in one process."""


def command(verb: str, file: Path, *more: str | Path) -> list[str]:
    options = {
        "n-layer": 1, "n-head": 2, "n-embd": 16, "batch-size": 8, "max-steps": 6, "warmup-steps": 2,
        "eval-interval": 3, "dropout": 0, "optimizer": "adamw", "ngram-smoothing": 0.4, "attention": "flash",
        "threads": 1,
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [verb, str(file), *words, *map(str, more)]


def test_a_second_list_finds_the_step_of_the_first_without_a_compiler(
    lists: dict[str, Path], cache: Path, forks: Forks, tmp_path: Path
) -> None:
    """The lists have other alphabets and lengths; the second one is trained where no compiler is."""
    program = tmp_path / "commands.py"
    program.write_text(COMMANDS, encoding="utf-8")

    def ended(environment: dict[str, str], *commands: list[str]) -> list[tuple[int, str, str]]:
        """The exit code of each command and what it printed, in a process of its own for all of them."""
        process = forks.run((program, json.dumps(commands)), {**os.environ, **environment})
        assert process.returncode == 0, process.stderr
        return [tuple(json.loads(line)) for line in process.stdout.splitlines()]

    ((code, _, told),) = ended({}, command("warm", lists["first"]))
    assert code == 0
    assert told.endswith("later runs of this kind use it\n")
    inductor = tmp_path / "inductor"
    nothing = {
        "TORCHINDUCTOR_CACHE_DIR": str(inductor), "PATH": str(tmp_path), "CXX": str(tmp_path / "none")
    }  # fmt: skip
    found, eager, *resumed = ended(
        nothing,
        command("train", lists["second"], "--json", "--out", tmp_path / "second"),
        command("train", lists["second"], "--json", "--out", tmp_path / "eager", "--speedups", "none"),
        ["train", "--resume", str(tmp_path / "second"), "--max-steps", "8"],
        ["train", "--resume", str(tmp_path / "eager"), "--max-steps", "8"],
    )
    assert [each[0] for each in (found, eager, *resumed)] == [0, 0, 0, 0]
    assert "compile used: the compiled step is in the cache" in found[2]
    for loss in ("val_loss", "test_loss"):
        assert json.loads(found[1])[loss] == pytest.approx(json.loads(eager[1])[loss], rel=1e-4)
    assert not list(inductor.rglob("*.so"))

    # No library and no compiler.
    missing, without = ended(
        {**nothing, "FLASHMORE_CACHE": str(tmp_path / "empty")},
        ["train", "--resume", str(tmp_path / "second"), "--max-steps", "10", "--json"],
        ["train", "--resume", str(tmp_path / "eager"), "--max-steps", "10", "--json"],
    )
    assert [missing[0], without[0]] == [0, 0]
    assert "compile, which this run used, is skipped" in missing[2]
    ends = [json.loads(each[1]) for each in (missing, without)]
    assert [end["steps"] for end in ends] == [10, 10]
    assert ends[0]["test_loss"] == pytest.approx(ends[1]["test_loss"], rel=1e-4)

    # A library that this system cannot load, and no compiler to make another.
    (path,) = (cache / "compiled").glob("*.pt2")
    (tmp_path / "other.pt2").write_bytes(b"of another system")
    libraries.keep(path.stem, tmp_path / "other.pt2", automatic=True)
    slow, refused = ended(
        nothing,
        command("train", lists["second"], "--json", "--out", tmp_path / "slow"),
        command("train", lists["second"], "--out", tmp_path / "named", "--speedups", "pack", "compile"),
    )
    assert [slow[0], refused[0]] == [0, 1]
    assert slow[2].count("the step could not be compiled, so it runs uncompiled") == 1
    loss = json.loads(slow[1])["test_loss"]
    assert loss == pytest.approx(json.loads(eager[1])["test_loss"], rel=1e-4)
    assert refused[2].count("wanted: ") == refused[2].count("torch.compile to succeed") == 1
    assert "Traceback" not in refused[2]


@pytest.mark.long
def test_rows_that_pad_tables_stay_zero(lists: dict[str, Path]) -> None:
    from flashmore.training.compiled.flat import FlatStep
    from flashmore.training.starting import begun

    config = TrainConfig(
        file=lists["second"], device="cpu", speedups=PACKED, n_layer=1, n_embd=16, n_head=2, batch_size=8,
        max_steps=20, ngram_smoothing=0.4, attention="flash",
    )  # fmt: skip
    with begun(config, lists["second"].with_name("padded")) as session:
        for _ in range(10):
            session.trainer.train_step()
        step, sizes = session.trainer.step, session.run.model
        assert isinstance(step, FlatStep)
        tables = {
            "wte.weight": sizes.vocab_size,
            "wpe.weight": sizes.block_size,
            "lm_head.weight": sizes.vocab_size,
        }
        for buffer in (step._buffers.flat, step._buffers.mean):
            for name, rows in tables.items():
                padded = step._function.views(buffer)[name]
                assert len(padded) > rows
                assert padded[:rows].any()
                assert not padded[rows:].any()


def test_warm_refuses_what_is_compiled_anew_in_each_run(lists: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="recurrent kernel"):
        warm(TrainConfig(file=lists["first"], model="gru"))
    with pytest.raises(ConfigError, match="compiled anew"):
        warm(TrainConfig(file=lists["first"], grad_accum=2, batch_size=8))
    with pytest.raises(ConfigError, match="--speedups none"):
        warm(TrainConfig(file=lists["first"], speedups=("none",)))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="--device cuda"):
            warm(TrainConfig(file=lists["first"], device="cuda"))


def test_warm_uses_as_many_threads_as_training_may(
    lists: dict[str, Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Program] = []
    monkeypatch.setattr("flashmore.training.warm.compile_for_later", lambda made, **_: compiled.append(made))
    monkeypatch.setattr("flashmore.training.resolve.cpu_quota", lambda _: 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert warm(replace(CONFIG, file=lists["first"], attention="flash"))
    finally:
        torch.set_num_threads(before)
    assert [made.threads for made in compiled] == [1]
    assert not [*cache.glob("compiled/*")]


def resolved_for_later(file: Path, model: str = "transformer") -> Any:
    from flashmore.training.corpus import read_corpus
    from flashmore.training.resolve import resolve

    config = TrainConfig(
        file=file, model=model, device="cpu", speedups=("none",), n_layer=1, n_embd=16, n_head=2,
        batch_size=8, max_steps=20, attention="flash",
    )  # fmt: skip
    later = PACKED if model == "transformer" else ("compile",)
    return replace(resolve(config, read_corpus(config), CPU), later=later)


def test_a_compiler_that_fails_in_the_background_is_told_once_and_nothing_here_is_imported(
    lists: dict[str, Path],
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "json.py").write_text("open('imported', 'w').close()", encoding="utf-8")
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
    resolved = resolved_for_later(lists["first"])
    monkeypatch.chdir(tmp_path)
    child = compile_in_background(resolved)
    assert child is not None
    assert child.wait() == 0
    assert not capfd.readouterr().err
    again = compile_in_background(resolved)
    assert again is not None
    again.terminate()
    again.wait()
    (failed,) = capfd.readouterr().err.splitlines()
    assert failed.startswith("compiling in the background failed: ")
    assert not list(cache.glob("compiled/*.*"))
    assert not (tmp_path / "imported").exists(), "imported from the working directory"


def test_one_process_in_the_background_compiles_at_a_time(
    lists: dict[str, Path], cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    resolved = resolved_for_later(lists["first"])
    held = libraries.lock()
    assert held is not None
    with held:
        assert libraries.lock() is None
        assert compile_in_background(resolved) is None
    assert not capfd.readouterr().err


@pytest.mark.long
def test_what_is_compiled_in_the_background_is_found(lists: dict[str, Path], cache: Path) -> None:
    resolved = resolved_for_later(lists["first"])
    child = compile_in_background(resolved)
    assert child is not None
    assert child.wait() == 0
    made = program_of(resolved.config, resolved.model_config, CPU, PACKED)
    assert made is not None
    assert find(made) is not None
    assert not warm(replace(resolved.config, speedups=("auto",)))


def test_a_signal_in_the_background_leaves_no_temporary_folder(
    lists: dict[str, Path],
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    child = compile_in_background(resolved_for_later(lists["first"], "mlp"))
    assert child is not None
    while not list(scratch.glob("flashmore-*")):
        assert child.poll() is None
        time.sleep(0.05)
    child.terminate()
    child.wait()
    assert not list(scratch.glob("flashmore-*"))
    held = libraries.lock()
    assert held is not None
    held.close()
    assert capfd.readouterr().err == "compiling in the background failed: it was ended\n"
