"""The WaveNet-style CNN: how far it sees, and its equations tap by tap."""

import pytest
import torch

from flashmore.models.config import ModelConfig
from flashmore.models.registry import build


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_a_position_sees_two_to_the_layers_positions(layers: int) -> None:
    context, sees = 20, 2**layers
    config = ModelConfig(model="wavenet", vocab_size=7, block_size=context, n_layer=layers, n_embd=8)
    model = build(config, seed=0).double()
    ids = torch.randint(7, (1, context), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(ids)[0, -1]
        for distance in range(context):
            other = ids.clone()
            other[0, -1 - distance] = (other[0, -1 - distance] + 1) % 7
            assert torch.equal(model(other)[0, -1], before) == (distance >= sees), distance


def test_the_equations_tap_by_tap() -> None:
    config = ModelConfig(model="wavenet", vocab_size=7, block_size=6, n_layer=3, n_embd=4)
    model = build(config, seed=0).double()
    w: dict[str, torch.Tensor] = model.state_dict()
    ids = torch.randint(7, (2, 6), generator=torch.Generator().manual_seed(1))
    logits = model(ids)

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    for b in range(2):
        xs = [w["wte.weight"][character] for character in ids[b]]
        skips = [torch.zeros(4, dtype=torch.float64)] * 6
        for layer in range(3):
            blank = torch.zeros(4, dtype=torch.float64)
            pasts = [xs[t - 2**layer] if t >= 2**layer else blank for t in range(6)]
            both = [
                linear(f"convolutions.{layer}.taps", torch.cat([past, x]))
                for past, x in zip(pasts, xs, strict=True)
            ]
            gated = [torch.tanh(y[:4]) * torch.sigmoid(y[4:]) for y in both]
            skips = [skip + linear(f"skips.{layer}", z) for skip, z in zip(skips, gated, strict=True)]
            if layer < 2:
                xs = [x + linear(f"residuals.{layer}", z) for x, z in zip(xs, gated, strict=True)]
        expected = torch.stack(
            [linear("lm_head", torch.relu(linear("hidden", torch.relu(skip)))) for skip in skips]
        )
        torch.testing.assert_close(logits[b], expected, rtol=1e-12, atol=1e-12)


def test_dilations_beyond_the_sequence_see_only_zeros() -> None:
    """40 layers mean a dilation of 2^39 positions: it must cost nothing and change no shape."""
    config = ModelConfig(model="wavenet", vocab_size=7, block_size=3, n_layer=40, n_embd=4)
    logits = build(config, seed=0)(torch.tensor([[0, 1, 2]]))
    assert logits.shape == (1, 3, 7)
    assert logits.isfinite().all()


def test_with_all_embeddings_and_residuals_dropped_no_position_differs_from_another() -> None:
    """A residual that stayed would be there at every position but not in the padding before the start."""
    config = ModelConfig(model="wavenet", vocab_size=7, block_size=8, n_layer=3, dropout=1 - 1e-12)
    logits = build(config, seed=0)(torch.zeros(1, 8, dtype=torch.int64))
    assert torch.equal(logits[0], logits[0, :1].expand(8, 7))
