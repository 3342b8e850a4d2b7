"""Compiles the steps of later runs: in this process, or in one in the background with the lowest priority.

`python -m flashmore.training.warm` is the process in the background.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, Self

import msgspec
import torch

from flashmore.config import TrainConfig
from flashmore.errors import ConfigError, FlashmoreError
from flashmore.models.config import ModelConfig
from flashmore.runs.records import convert
from flashmore.terminal import say
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
"""As `os.nice` counts, where the system has it."""


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


class Background:
    """A process that compiles a step for later runs, with the lowest priority; a context manager.

    It goes on after the end of the context, unless that ends with an error.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the context

    def start(self, resolved: Resolved) -> bool:
        """Compile the step with which runs like this one would be faster; returns whether there is one."""
        if not resolved.later:
            return False
        task = _Task(
            resolved.config.to_json(),
            asdict(resolved.model_config),
            resolved.later,
            torch.get_num_threads(),
        )
        # -P and the same path as here: `python -m` alone imports from the working directory first.
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,  # Ctrl-C is for this process, which then ends the other
        )
        assert self._child.stdin is not None
        with suppress(OSError), self._child.stdin as pipe:
            pipe.write(msgspec.json.encode(task))
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._errors as errors:
            if self._child is None:
                return
            if kind is not None:
                if hasattr(os, "killpg"):  # the C++ compiler as well
                    with suppress(ProcessLookupError):
                        os.killpg(self._child.pid, signal.SIGTERM)
                else:
                    self._child.terminate()
                self._child.wait()
            elif self._child.poll():
                errors.seek(0)
                last = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
                say(f"compiling in the background failed: {last}")


class _Task(msgspec.Struct):
    config: dict[str, Any]
    model: dict[str, Any]
    speedups: tuple[str, ...]
    threads: int


def main() -> None:
    """Be the process in the background."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # which removes temporary folders
    if hasattr(os, "nice"):
        os.nice(LOWEST_PRIORITY)
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=_Task)
    torch.set_num_threads(task.threads)
    config = convert(task.config, TrainConfig, "a config")
    try:
        _warm(config, ModelConfig(**task.model), task.speedups)
    except FlashmoreError as error:
        sys.exit(f"{error.wanted}, found {error.found}")


if __name__ == "__main__":
    main()
