"""Compute the same attention with every backend that runs here, and compare each with float64.

    python examples/compare_backends.py

Kernels do not agree bit for bit. A correct one is about as close to float64 as manual attention in the same
precision. For a backend that cannot run here, the reason is printed.
"""

import torch

from flashmore import FlashmoreError, attention
from flashmore.specs import backends

B, H, T, D = 2, 4, 256, 32


def main() -> None:
    """Print the largest error of each backend in float32 and in bfloat16."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v = torch.randn(3, B, H, T, D, generator=torch.Generator().manual_seed(0)).to(device)
    print(f"causal attention over (B {B}, H {H}, T {T}, D {D}) on {device}: largest error against float64")
    for dtype in (torch.float32, torch.bfloat16):
        rounded = [tensor.to(dtype) for tensor in (q, k, v)]
        exact = attention(*(tensor.double() for tensor in rounded), backend="manual", causal=True)
        for backend in backends():
            try:
                out = attention(*rounded, backend=backend, causal=True)
            except FlashmoreError as refused:
                print(f"{dtype!s:15} {backend:9} {refused.found}")
            else:
                print(f"{dtype!s:15} {backend:9} {(out.double() - exact).abs().max().item():.1e}")


if __name__ == "__main__":
    main()
