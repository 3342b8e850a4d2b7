"""The MLP against a loop over positions."""

import torch

from flashmore.models.config import ModelConfig
from flashmore.models.registry import build, count_parameters

CONFIG = ModelConfig(model="mlp", vocab_size=7, block_size=5, n_embd=6)


def test_every_position_is_a_window_of_embeddings_with_blanks_before_the_start() -> None:
    model = build(CONFIG, seed=0).double()
    w = model.state_dict()
    ids = torch.randint(7, (3, 4), generator=torch.Generator().manual_seed(1))
    logits = model(ids)
    for b in range(3):
        for t in range(4):
            window = ([7] * 5 + ids[b, : t + 1].tolist())[-5:]
            x = torch.cat([w["wte.weight"][character] for character in window])
            hidden = torch.tanh(w["hidden.weight"] @ x + w["hidden.bias"])
            expected = w["lm_head.weight"] @ hidden + w["lm_head.bias"]
            torch.testing.assert_close(logits[b, t], expected, rtol=1e-12, atol=1e-12)


def test_the_blank_is_no_character() -> None:
    """BOS is id 0 and a blank is not: a window of BOS ids must differ from one of blanks."""
    model = build(CONFIG, seed=0)
    logits = model(torch.zeros(1, 5, dtype=torch.int64))
    assert not torch.allclose(logits[0, 0], logits[0, 4])


def test_parameters_at_makemores_sizes() -> None:
    model = build(ModelConfig(model="mlp", vocab_size=27, block_size=16), seed=0)
    assert count_parameters(model) == 28 * 64 + (16 * 64 + 1) * 64 + (64 + 1) * 27
