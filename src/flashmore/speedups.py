"""The catalogue: every documented speed-up once, with its page, its devices, its exactness and its cost.

`--speedups` switches those that are about nothing but speed, each a field of `Speedups`. The others are
options of their own, such as `--attention`, or always on. `flashmore bench ablation` adds all of them one
after the other; `flashmore speedups` and docs/speedups.md print the same entries.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from flashmore.config import TrainConfig
from flashmore.errors import ConfigError

Exactness = Literal["same gradients up to rounding", "changes the numerics", "changes the algorithm"]
EXACT: Exactness = "same gradients up to rounding"
NUMERICS: Exactness = "changes the numerics"
ALGORITHM: Exactness = "changes the algorithm"

DOCS = "https://docs.pytorch.org/docs/stable/"


@dataclass(frozen=True)
class Speedups:
    """How the steps of a run are computed, beside its options; all False is one operation after the other."""

    fused_adamw: bool = False
    trim: bool = False
    pack: bool = False
    pad_vocab: bool = False
    compile: bool = False
    max_autotune: bool = False
    cuda_graph: bool = False
    replay: bool = False
    tf32: bool = False

    @classmethod
    def of(cls, names: Iterable[str]) -> "Speedups":
        """The speed-ups with these names.

        Raises:
            ConfigError: a name that is none of `SWITCHES`.
        """
        wanted = tuple(names)
        for name in wanted:
            if name not in SWITCHES:
                entry = CATALOGUE.get(name)
                found = f"'{name}'" if entry is None else f"'{name}', which is {entry.how(name)}"
                raise ConfigError("a speed-up that --speedups switches", found, ", ".join(SWITCHES))
        return cls(**{name.replace("-", "_"): True for name in wanted})

    @property
    def names(self) -> tuple[str, ...]:
        """The names of those that are on, in the catalogue's order."""
        return tuple(name for name in SWITCHES if getattr(self, name.replace("-", "_")))


@dataclass(frozen=True)
class Option:
    """An option of a run that a speed-up is."""

    name: str
    """The field of `TrainConfig`."""
    on: Any
    off: Any


@dataclass(frozen=True)
class Entry:
    """One speed-up."""

    title: str
    page: str
    """Where PyTorch documents it."""
    devices: tuple[str, ...]
    exactness: Exactness
    why: str
    """Where the time goes without it."""
    costs: str
    """Memory, and seconds before the first step."""
    test: str
    """The test that shows its exactness, as pytest names it."""
    needs: tuple[str, ...] = ()
    """Speed-ups that it is a part of."""
    excludes: tuple[str, ...] = ()
    """Speed-ups that cannot be on together with it."""
    option: Option | None = None
    """Where an option of its own decides."""
    always: bool = False
    """Never off in training and generation; `bench ablation` shows what it is worth."""

    def how(self, name: str) -> str:
        """How a run has it, by the entry's name."""
        if self.always:
            return "always on"
        if self.option is None:
            return f"--speedups {name}"
        return f"--{self.option.name.replace('_', '-')} {self.option.on}"


CATALOGUE: dict[str, Entry] = {
    "resident": Entry(
        "Batches gathered from tensors on the device",
        DOCS + "data.html",
        ("cpu", "cuda", "mps"), EXACT,
        "a DataLoader runs Python for every item, and copies every batch to the device",
        "the encoded data in the device's memory: 16 bytes a position",
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
        "The loss is read only when it is shown",
        "https://docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html#avoid-unnecessary-cpu-gpu-synchronization",
        ("cpu", "cuda", "mps"), EXACT,
        "`loss.item()` in every step makes the CPU wait for the device",
        "nothing",
        "tests/benchmark/test_bench_ablation.py::test_exact_variants_use_a_part_of_their_budget_and_others_tell_their_loss",
        always=True,
    ),
    "attention": Entry(
        "Fused attention, by the backend that measures best here",
        DOCS + "generated/torch.nn.functional.scaled_dot_product_attention.html",
        ("cpu", "cuda", "mps"), EXACT,
        "by hand, the (T, T) scores are written to memory and read again four times",
        "about two seconds of measuring, once for a machine and a shape",
        "tests/training/test_speedups.py::test_gradients_are_those_of_the_plain_loop",
        option=Option("attention", "auto", "manual"),
    ),
    "trim": Entry(
        "Rows cut to the longest item of the batch",
        "https://docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html",
        ("cpu", "cuda", "mps"), EXACT,
        "positions that are padding in every row are computed for nothing",
        "nothing",
        "tests/training/test_speedups.py::test_gradients_are_those_of_the_plain_loop",
        excludes=("pack", "compile", "cuda-graph", "replay"),
    ),
    "pack": Entry(
        "Packed items: linear layers see real characters only",
        DOCS + "nn.attention.varlen.html",
        ("cpu", "cuda"), EXACT,
        "of makemore's padded positions about half are padding",
        "nothing",
        "tests/training/test_speedups.py::test_gradients_are_those_of_the_plain_loop",
        excludes=("trim", "cuda-graph", "replay"),
    ),
    "pad-vocab": Entry(
        "The vocabulary padded to a multiple of 64",
        "https://docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication/index.html",
        ("cuda",), EXACT,
        "matrix kernels for odd widths are slower; the added columns never reach the loss",
        "rows of the output layer that are never used",
        "tests/training/test_speedups.py::test_gradients_are_those_of_the_plain_loop",
    ),
    "compile": Entry(
        "Forward, backward and optimizer as one compiled graph",
        DOCS + "generated/torch.compile.html",
        ("cpu", "cuda"), EXACT,
        "Python, autograd's bookkeeping and a kernel launch stand between every two small operations",
        "10 to 60 seconds before the first step, a few the next time",
        "tests/training/test_speedups.py::test_gradients_are_those_of_the_plain_loop",
        excludes=("trim",),
    ),
    "max-autotune": Entry(
        "torch.compile's mode max-autotune",
        DOCS + "generated/torch.compile.html",
        ("cpu", "cuda"), EXACT,
        "the library's matrix kernel is not always the fastest one for a shape",
        "a minute or more before the first step",
        "tests/training/test_speedups.py::test_gradients_are_those_of_the_plain_loop",
        needs=("compile",),
    ),
    "cuda-graph": Entry(
        "The whole step as one CUDA graph",
        DOCS + "generated/torch.cuda.CUDAGraph.html",
        ("cuda",), EXACT,
        "for a small model the CPU cannot launch kernels as fast as the GPU finishes them",
        "a private pool of memory, a second for the capture",
        "tests/training/test_cuda_graph.py::test_a_captured_step_trains_as_the_plain_loop",
        excludes=("trim", "pack"),
    ),
    "replay": Entry(
        "Eight steps in one replay of the CUDA graph",
        "https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/",
        ("cuda",), EXACT,
        "even one launch a step leaves the GPU waiting when the step is very short",
        "eight times the graph's capture",
        "tests/training/test_cuda_graph.py::test_a_captured_step_trains_as_the_plain_loop",
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
        "float32 moves twice the bytes and uses the slower units",
        "7 bits of mantissa instead of 23",
        "tests/training/test_speedups.py::test_numerics_stay_close",
        option=Option("dtype", "bfloat16", "float32"),
    ),
    "kv-cache": Entry(
        "Keys and values kept while generating",
        DOCS + "generated/torch.nn.functional.scaled_dot_product_attention.html",
        ("cpu", "cuda", "mps"), EXACT,
        "without them every new character computes all earlier ones again",
        "2·L·B·T·C numbers while generating; training is not touched",
        "tests/generation/test_cache.py",
        always=True,
    ),
    "schedule": Entry(
        "Warm-up and a cosine for the learning rate",
        DOCS + "generated/torch.optim.lr_scheduler.CosineAnnealingLR.html",
        ("cpu", "cuda", "mps"), ALGORITHM,
        "a constant learning rate must be low enough for the end, and is then too low before",
        "nothing; but the number of steps must be known at the start",
        "tests/training/test_optimizers.py::test_the_schedule_rises_and_falls",
        option=Option("lr_schedule", "cosine", "constant"),
    ),
    "muon": Entry(
        "Muon for the matrices of the blocks",
        DOCS + "generated/torch.optim.Muon.html",
        ("cpu", "cuda"), ALGORITHM,
        "AdamW needs more steps for the same loss",
        "five small matrix products a matrix and a step",
        "tests/training/test_optimizers.py::test_muon_is_the_one_of_pytorch",
        option=Option("optimizer", "muon", "adamw"),
    ),
}  # fmt: skip
"""By name, in the order in which the ablation adds them."""

SWITCHES = tuple(name for name, entry in CATALOGUE.items() if entry.option is None and not entry.always)
"""The names that `--speedups` takes."""
GROUPS = ("auto", "none", "exact", "all")
"""What `--speedups` takes beside names: what pays here, nothing, all exact ones, all."""


def changed(config: TrainConfig, names: Collection[str]) -> TrainConfig:
    """A config with these speed-ups of the catalogue and no other, whatever it had."""
    options = [(name, entry.option) for name, entry in CATALOGUE.items() if entry.option is not None]
    values = {option.name: option.on if name in names else option.off for name, option in options}
    switches = tuple(name for name in SWITCHES if name in names)
    return replace(config, speedups=switches or ("none",), **values)


def _fields_match_entries() -> bool:
    return {field.name.replace("_", "-") for field in fields(Speedups)} == set(SWITCHES)


assert _fields_match_entries(), "a speed-up without an entry, or an entry without a field"
