"""Compiles the steps of later runs: in this process, or in one in the background with the lowest priority.

`python -m flashmore.training.warm` is the process in the background.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from flashmore.config import TrainConfig
from flashmore.errors import ConfigError, FlashmoreError
from flashmore.files import disk_errors
from flashmore.models.config import ModelConfig
from flashmore.runs.records import convert
from flashmore.training.compiled import libraries
from flashmore.training.compiled.ahead import cached_attention, compile_for_later
from flashmore.training.compiled.program import program_of
from flashmore.training.corpus import Corpus, read_corpus
from flashmore.training.decide import decide, why_not
from flashmore.training.distillation import teacher_config
from flashmore.training.fit import fit
from flashmore.training.resolve import (
    Resolved,
    resolve_attention,
    resolve_device,
    resolve_model,
    set_threads,
)

CPU = torch.device("cpu")
LOWEST_PRIORITY = 19
"""Niceness, where the system has it."""
FOLDERS = ("FLASHMORE_CACHE", "TORCHINDUCTOR_CACHE_DIR", "TMPDIR")
"""Environment variables with paths that may be relative."""


def warm(config: TrainConfig) -> bool:
    """Compile the step with which `train` would train on the CPU, unless it is in the cache.

    Returns:
        Whether it was not in the cache.

    Raises:
        DataError: the data cannot be read.
        ConfigError: the step of this config cannot be compiled for later runs, or there is no such device.
        StorageError: the cache cannot be written.
    """
    set_threads(config)
    device, corpus = resolve_device(config.device), read_corpus(config)
    fitted, _ = fit(config, corpus)
    wanted = [fitted]
    if fitted.teachers:  # which all have the same step
        wanted += [fit(teacher_config(config, 1, fitted.max_steps), corpus)[0]]
    missing = [_warm_one(each, corpus, device) for each in wanted]
    return any(missing)


def _warm_one(config: TrainConfig, corpus: Corpus, device: torch.device) -> bool:
    sizes = resolve_model(config, corpus)
    speedups = decide(config, sizes, device, lambda _: (0.0, 0.0, 0.0), lambda _: True).speedups
    found = None
    if "compile" not in speedups:
        found = why_not("compile", config, sizes, device) or f"--speedups {' '.join(config.speedups)}"
    elif program_of(config, sizes, device, speedups) is None:
        found = f"one that is compiled anew in each run, on {device.type}"
    if found is not None:
        raise ConfigError("a step that can be compiled for later runs", found, "a transformer on one CPU")
    return _warm(config, sizes, speedups)


def _warm(config: TrainConfig, model_config: ModelConfig, speedups: Collection[str]) -> bool:
    if cached_attention(config, model_config, CPU, speedups) is not None:
        return False
    libraries.writable_folder()  # before a minute of compiling
    choice = resolve_attention(config.attention, config, model_config, CPU, compiled=True)
    sizes = model_config if choice is None else replace(model_config, attention=choice.backend)
    program = program_of(config, sizes, CPU, speedups)
    assert program is not None
    compile_for_later(program, automatic=config.attention == "auto")
    return True


def compile_in_background(resolved: Resolved) -> subprocess.Popen[bytes] | None:
    """Start a process that compiles the step with which runs like this one would be faster.

    Returns:
        The process; None if there is no such step, or if one is at work, which Windows does not tell.

    Raises:
        StorageError: the cache cannot be written, or no process can be started.
    """
    if not resolved.later or (held := libraries.lock()) is None:
        return None
    config, model = resolved.config.to_json(), asdict(resolved.model_config)
    task = _Task(config, model, resolved.later, torch.get_num_threads())
    libraries.note_failure("it was ended")
    folder = libraries.writable_folder()
    with held, disk_errors("to start a process that compiles", folder):
        child = subprocess.Popen(
            # -P and the same path as here: `python -m` alone imports from the working directory first.
            [sys.executable, "-P", "-m", __name__],
            cwd=folder,  # the present one may be removed meanwhile
            env={**os.environ, **_absolute()},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # it goes on after this process
            pass_fds=(held.fileno(),) if os.name == "posix" else (),
        )
        if hasattr(os, "setpriority"):
            os.setpriority(os.PRIO_PROCESS, child.pid, LOWEST_PRIORITY)
    assert child.stdin is not None
    with suppress(OSError), child.stdin as pipe:
        pipe.write(msgspec.json.encode(task))
    return child


def _absolute() -> dict[str, str]:
    """The import path of this process and the folders in its environment, for another working directory."""
    folders = {name: os.environ[name] for name in FOLDERS if name in os.environ}
    paths = [str(Path(each).absolute()) for each in sys.path if each]
    return {name: str(Path(folder).absolute()) for name, folder in folders.items()} | {
        "PYTHONPATH": os.pathsep.join(paths)
    }


class _Task(msgspec.Struct):
    config: dict[str, Any]
    model: dict[str, Any]
    speedups: tuple[str, ...]
    threads: int


def main() -> None:
    """Be the process in the background."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # which removes temporary folders
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=_Task)
    torch.set_num_threads(task.threads)
    config = convert(task.config, TrainConfig, "a config")
    failure = ""
    try:
        _warm(config, ModelConfig(**task.model), task.speedups)
    except FlashmoreError as error:
        failure = f"{error.wanted}, found {error.found}"
    except Exception as error:  # noqa: BLE001 - whatever it is, nobody reads stderr
        failure = f"{type(error).__name__}: {error}".partition("\n")[0]
    libraries.note_failure(failure)


if __name__ == "__main__":
    main()
