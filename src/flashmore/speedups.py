"""The catalogue: every documented speed-up with its page, devices, exactness and cost.

`--speedups` selects those that only affect speed. The others have their own option, such as `--attention`, or
are always on. `flashmore bench ablation` adds them one at a time;
`flashmore speedups` and docs/speedups.md list the same entries.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from flashmore.config import TrainConfig
from flashmore.errors import ConfigError, option_of

Exactness = Literal["same gradients up to rounding", "changes the numerics", "changes the algorithm"]
EXACT: Exactness = "same gradients up to rounding"
NUMERICS: Exactness = "changes the numerics"
ALGORITHM: Exactness = "changes the algorithm"

DOCS = "https://docs.pytorch.org/docs/stable/"


@dataclass(frozen=True)
class Option:
    """The training option that enables a speed-up."""

    name: str
    """The field of `TrainConfig`."""
    on: Any
    off: Any


@dataclass(frozen=True)
class Entry:
    """One speed-up."""

    title: str
    page: str
    """Its page in PyTorch's documentation."""
    devices: tuple[str, ...]
    exactness: Exactness
    why: str
    """Where the time goes without it."""
    costs: str
    """Cost in memory, and in seconds before the first step."""
    test: str
    """The test that shows its exactness, as pytest names it."""
    needs: tuple[str, ...] = ()
    """Speed-ups that it requires."""
    excludes: tuple[str, ...] = ()
    """Speed-ups that it cannot be combined with."""
    model: str = ""
    """The option or capability of a `ModelSpec` that it needs."""
    option: Option | None = None
    """Its option, if it has its own."""
    always: bool = False
    """Always on in training and generation; `bench ablation` measures it."""

    def how(self, name: str) -> str:
        """How to enable it, given the entry's name."""
        if self.always:
            return "always on"
        if self.option is None:
            return f"--speedups {name}"
        return f"{option_of(self.option.name)} {self.option.on}"


CATALOGUE: dict[str, Entry] = {
    "resident": Entry(
        "Batches gathered from tensors on the device",
        DOCS + "data.html",
        ("cpu", "cuda", "mps"), EXACT,
        "a DataLoader runs Python for every item, and copies every batch to the device",
        "16 bytes of device memory per position",
        "tests/benchmark/test_bench_ablation.py::test_the_plain_loop_has_the_same_batches",
        always=True,
    ),
    "fused-adamw": Entry(
        "Fused AdamW",
        DOCS + "generated/torch.optim.AdamW.html",
        ("cpu", "cuda", "mps"), EXACT,
        "the plain loop launches a dozen small kernels for each of the model's tensors",
        "nothing",
        "tests/training/test_speedups.py::test_gradients_are_those_of_the_plain_loop",
    ),
    "no-sync": Entry(
        "Loss read only when displayed",
        "https://docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html#avoid-unnecessary-cpu-gpu-synchronization",
        ("cpu", "cuda", "mps"), EXACT,
        "`loss.item()` in every step makes the CPU wait for the device",
        "nothing",
        "tests/benchmark/test_bench_ablation.py::test_exact_variants_use_a_part_of_their_budget_and_others_tell_their_loss",
        always=True,
    ),
    "attention": Entry(
        "Fused attention, with the backend that measures fastest here",
        DOCS + "generated/torch.nn.functional.scaled_dot_product_attention.html",
        ("cpu", "cuda", "mps"), EXACT,
        "manual attention writes the (T, T) scores to memory and reads them back four times",
        "about two seconds of measurement, once per machine and shape",
        "tests/training/test_speedups.py::test_gradients_are_those_of_the_plain_loop",
        option=Option("attention", "auto", "manual"), model="attention",
    ),
    "trim": Entry(
        "Rows trimmed to the longest item of the batch",
        "https://docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html",
        ("cpu", "cuda", "mps"), EXACT,
        "positions that are padding in every row are computed needlessly",
        "nothing",
        "tests/training/test_speedups.py::test_gradients_are_those_of_the_plain_loop",
        excludes=("pack", "compile", "cuda-graph", "replay"),
    ),
    "pack": Entry(
        "Packed items: linear layers process no padding",
        DOCS + "nn.attention.varlen.html",
        ("cpu", "cuda"), EXACT,
        "about half of makemore's positions are padding",
        "nothing",
        "tests/training/test_speedups.py::test_gradients_are_those_of_the_plain_loop",
        excludes=("trim", "cuda-graph", "replay"), model="packed",
    ),
    "pad-vocab": Entry(
        "Vocabulary padded to a multiple of 64",
        "https://docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication/index.html",
        ("cuda",), EXACT,
        "matmul kernels are slower for odd widths; the added columns do not affect the loss",
        "unused rows of the output layer",
        "tests/training/test_speedups.py::test_gradients_are_those_of_the_plain_loop",
        model="padding_multiple",
    ),
    "compile": Entry(
        "Forward, backward and optimizer as one compiled graph",
        DOCS + "generated/torch.compile.html",
        ("cpu", "cuda"), EXACT,
        "every small operation has the overhead of Python, autograd and a kernel launch",
        "10 to 60 seconds before the first step; nothing on a CPU once the step is cached",
        "tests/training/test_speedups.py::test_gradients_are_those_of_the_plain_loop",
        excludes=("trim",),
    ),
    "max-autotune": Entry(
        "torch.compile with mode max-autotune",
        DOCS + "generated/torch.compile.html",
        ("cpu", "cuda"), EXACT,
        "the library's matmul kernel is not always the fastest for a shape",
        "a minute or more before the first step",
        "tests/training/test_speedups.py::test_gradients_are_those_of_the_plain_loop",
        needs=("compile",),
    ),
    "cuda-graph": Entry(
        "The whole step as one CUDA graph",
        DOCS + "generated/torch.cuda.CUDAGraph.html",
        ("cuda",), EXACT,
        "with a small model, the GPU finishes kernels faster than the CPU launches them",
        "a private memory pool, and about a second for the capture",
        "tests/training/compiled/test_cuda_graph.py::test_a_captured_step_trains_as_the_plain_loop",
        excludes=("trim", "pack"),
    ),
    "replay": Entry(
        "Eight steps in one replay of the CUDA graph",
        "https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/",
        ("cuda",), EXACT,
        "for very short steps, even one launch per step leaves the GPU idle",
        "capturing eight steps instead of one",
        "tests/training/compiled/test_cuda_graph.py::test_a_captured_step_trains_as_the_plain_loop",
        needs=("cuda-graph",), excludes=("trim", "pack"),
    ),
    "tf32": Entry(
        "TF32 matrix products",
        DOCS + "generated/torch.set_float32_matmul_precision.html",
        ("cuda",), NUMERICS,
        "float32 products do not use the tensor cores",
        "10 bits of mantissa instead of 23",
        "tests/training/test_speedups.py::test_numerics_stay_close",
    ),
    "bf16": Entry(
        "bfloat16 autocast",
        DOCS + "amp.html",
        ("cpu", "cuda"), NUMERICS,
        "float32 moves twice the bytes and uses slower units",
        "7 bits of mantissa instead of 23",
        "tests/training/test_speedups.py::test_numerics_stay_close",
        option=Option("dtype", "bfloat16", "float32"),
    ),
    "kv-cache": Entry(
        "KV cache in generation",
        DOCS + "generated/torch.nn.functional.scaled_dot_product_attention.html",
        ("cpu", "cuda", "mps"), EXACT,
        "without it, every new character recomputes all earlier ones",
        "2·L·B·T·C numbers in generation; training is unaffected",
        "tests/generation/test_cache.py",
        always=True, model="kv_cache",
    ),
    "schedule": Entry(
        "Learning rate warm-up and cosine schedule",
        DOCS + "generated/torch.optim.lr_scheduler.CosineAnnealingLR.html",
        ("cpu", "cuda", "mps"), ALGORITHM,
        "a constant learning rate that is low enough for the end is too low for the start",
        "nothing, but the number of steps must be known in advance",
        "tests/training/test_optimizers.py::test_the_schedule_rises_and_falls",
        option=Option("lr_schedule", "cosine", "constant"),
    ),
    "muon": Entry(
        "Muon for the blocks' matrices",
        DOCS + "generated/torch.optim.Muon.html",
        ("cpu", "cuda"), ALGORITHM,
        "AdamW needs more steps for the same loss",
        "five small matrix products per weight matrix and step",
        "tests/training/test_optimizers.py::test_muon_is_the_one_of_pytorch",
        option=Option("optimizer", "muon", "adamw"), model="muon",
    ),
}  # fmt: skip
"""By name, in the order in which the ablation adds them."""

SWITCHES = tuple(name for name, entry in CATALOGUE.items() if entry.option is None and not entry.always)
"""The names that `--speedups` takes."""
GROUPS = ("auto", "none", "exact", "all")
"""Groups that `--speedups` accepts besides names."""


def switches(names: Iterable[str]) -> tuple[str, ...]:
    """These speed-ups in the catalogue's order.

    Raises:
        ConfigError: a name that is not in `SWITCHES`.
    """
    wanted = set(names)
    for name in sorted(wanted - set(SWITCHES)):
        entry = CATALOGUE.get(name)
        found = f"'{name}'" if entry is None else f"'{name}', which is {entry.how(name)}"
        raise ConfigError("a name for --speedups", found, ", ".join(SWITCHES))
    return tuple(name for name in SWITCHES if name in wanted)


def changed(config: TrainConfig, names: Collection[str]) -> TrainConfig:
    """A copy of a config with exactly these speed-ups of the catalogue enabled."""
    options = [(name, entry.option) for name, entry in CATALOGUE.items() if entry.option is not None]
    values = {option.name: option.on if name in names else option.off for name, option in options}
    return replace(config, speedups=switches(set(names) & set(SWITCHES)) or ("none",), **values)
