"""RNN, GRU and LSTM against their equations, one step at a time."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flashmore.models.config import ModelConfig
from flashmore.models.registry import build

Weights = dict[str, Tensor]


def pre_activations(w: Weights, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """What the input and the state each bring to the gates, (B, gates * C)."""
    from_input = x @ w["core.weight_ih_l0"].T + w["core.bias_ih_l0"]
    from_state = h @ w["core.weight_hh_l0"].T + w["core.bias_hh_l0"]
    return from_input, from_state


def rnn_step(w: Weights, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    from_input, from_state = pre_activations(w, x, h)
    return torch.tanh(from_input + from_state), c


def gru_step(w: Weights, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    from_input, from_state = pre_activations(w, x, h)
    r_x, z_x, n_x = from_input.chunk(3, dim=1)
    r_h, z_h, n_h = from_state.chunk(3, dim=1)
    reset, update = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
    return (1 - update) * torch.tanh(n_x + reset * n_h) + update * h, c


def lstm_step(w: Weights, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    from_input, from_state = pre_activations(w, x, h)
    let_in, forget, candidate, let_out = (from_input + from_state).chunk(4, dim=1)
    c = torch.sigmoid(forget) * c + torch.sigmoid(let_in) * torch.tanh(candidate)
    return torch.sigmoid(let_out) * torch.tanh(c), c


@pytest.mark.parametrize(("name", "step"), [("rnn", rnn_step), ("gru", gru_step), ("lstm", lstm_step)])
def test_the_recurrence_step_by_step(name: str, step: Callable[..., tuple[Tensor, Tensor]]) -> None:
    model = build(ModelConfig(model=name, vocab_size=7, block_size=6, n_embd=5), seed=0).double()
    with torch.no_grad():  # starts that are not zero, or a start that is ignored would go unseen
        for key, parameter in model.named_parameters():
            if key.startswith("start"):
                parameter.copy_(torch.linspace(-0.9, 0.7, 5))
    w = model.state_dict()
    ids = torch.randint(7, (3, 6), generator=torch.Generator().manual_seed(1))
    logits = model(ids)

    h = w["start"][0].expand(3, -1)
    c = w["start_cell"][0].expand(3, -1) if name == "lstm" else h
    for t in range(6):
        h, c = step(w, w["wte.weight"][ids[:, t]], h, c)
        expected = h @ w["lm_head.weight"].T + w["lm_head.bias"]
        torch.testing.assert_close(logits[:, t], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "gates"), [("rnn", 1), ("gru", 3), ("lstm", 4)])
def test_one_layer_whatever_layers_says(name: str, gates: int) -> None:
    model = build(ModelConfig(model=name, vocab_size=27, block_size=16, n_layer=3), seed=0)
    core = {key: tuple(value.shape) for key, value in model.state_dict().items() if key.startswith("core.")}
    assert core == {
        "core.weight_ih_l0": (gates * 64, 64),
        "core.weight_hh_l0": (gates * 64, 64),
        "core.bias_ih_l0": (gates * 64,),
        "core.bias_hh_l0": (gates * 64,),
    }
