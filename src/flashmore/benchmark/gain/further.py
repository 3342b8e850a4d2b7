"""Other documented speed-ups that go well with rewrites, with their pages; none is measured here."""

from dataclasses import dataclass

DOCS = "https://docs.pytorch.org/docs/stable"


@dataclass(frozen=True)
class Further:
    """One speed-up worth trying next."""

    title: str
    how: str
    page: str
    on: tuple[str, ...] = ("cpu", "cuda")


FURTHER = (
    Further(
        "torch.compile",
        "model = torch.compile(model): the rest of the step, fused too",
        f"{DOCS}/generated/torch.compile.html",
    ),
    Further(
        "bfloat16",
        "with torch.autocast(device, dtype=torch.bfloat16): half the memory traffic, but other numerics",
        f"{DOCS}/amp.html",
    ),
    Further(
        "TF32",
        'torch.set_float32_matmul_precision("high"): tensor cores for float32 products, but other numerics',
        f"{DOCS}/generated/torch.set_float32_matmul_precision.html",
        on=("cuda",),
    ),
    Further(
        "less padding",
        "batches of similar lengths, trimmed to the longest: padding costs time even if it is masked",
        f"{DOCS}/nested.html",
    ),
)


def worth_trying(device: str) -> tuple[Further, ...]:
    """What goes with this kind of device, such as `cpu` or `cuda`."""
    return tuple(one for one in FURTHER if device in one.on)
