"""The models without attention against their equations, one position at a time."""

import math
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flashmore.models.config import ModelConfig
from flashmore.models.registry import build, count_parameters
from flashmore.models.simple import Bigram

WORDS = [[1, 2, 2, 3], [2, 3], [3, 1, 2], [1], [2, 2, 2, 1, 3]]


def sequences() -> tuple[Tensor, Tensor]:
    longest = max(map(len, WORDS)) + 1
    ids = torch.tensor([[0, *word] + [0] * (longest - len(word) - 1) for word in WORDS])
    targets = torch.tensor([[*word, 0] + [-1] * (longest - len(word) - 1) for word in WORDS])
    return ids, targets


def bigram() -> Bigram:
    return Bigram(ModelConfig(model="bigram", vocab_size=4, block_size=8))


def test_log_counts_give_the_entropy_of_the_counts() -> None:
    pairs = Counter(pair for word in WORDS for pair in pairwise([0, *word, 0]))
    firsts = Counter[int]()
    for (first, _), count in pairs.items():
        firsts[first] += count
    entropy = -sum(n * math.log(n / firsts[first]) for (first, _), n in pairs.items()) / pairs.total()

    model = bigram().double()
    with torch.no_grad():
        for row in range(4):
            for column in range(4):
                model.logits[row, column] = math.log(pairs[row, column]) if pairs[row, column] else -1e9
    ids, targets = sequences()
    loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), ignore_index=-1)
    assert loss.item() == pytest.approx(entropy, rel=1e-12)


def test_before_training_every_character_is_equally_likely() -> None:
    ids, targets = sequences()
    loss = F.cross_entropy(bigram()(ids).flatten(0, 1), targets.flatten(), ignore_index=-1)
    assert loss.item() == pytest.approx(math.log(4), rel=1e-6)


def test_the_logits_are_the_row_of_the_last_id() -> None:
    model = bigram()
    with torch.no_grad():
        model.logits.copy_(torch.arange(16.0).view(4, 4))
    assert model(torch.tensor([[0, 2, 1]])).tolist() == [[[0, 1, 2, 3], [8, 9, 10, 11], [4, 5, 6, 7]]]


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


def test_every_position_averages_what_it_has_seen() -> None:
    model = build(ModelConfig(model="bow", vocab_size=7, block_size=6, n_embd=5), seed=0).double()
    w = model.state_dict()
    ids = torch.randint(7, (3, 5), generator=torch.Generator().manual_seed(1))
    logits = model(ids)
    for b in range(3):
        seen: list[torch.Tensor] = []
        for t in range(5):
            seen.append(w["wte.weight"][ids[b, t]] + w["wpe.weight"][t])
            x = seen[-1] + torch.stack(seen).mean(0)
            x = x + w["c_proj.weight"] @ torch.tanh(w["c_fc.weight"] @ x + w["c_fc.bias"]) + w["c_proj.bias"]
            expected = w["lm_head.weight"] @ x + w["lm_head.bias"]
            torch.testing.assert_close(logits[b, t], expected, rtol=1e-12, atol=1e-12)


def test_dropout_acts_on_embeddings_average_and_mlp() -> None:
    """The same random numbers in the same order give the same logits only with the same three places."""
    model = build(ModelConfig(model="bow", vocab_size=7, block_size=6, n_embd=5, dropout=0.5), seed=0)
    w = model.state_dict()
    ids = torch.tensor([[0, 3, 6, 1, 2]])
    torch.manual_seed(4)
    logits = model(ids)
    torch.manual_seed(4)
    x = F.dropout(w["wte.weight"][ids] + w["wpe.weight"][:5], 0.5)
    x = x + F.dropout(torch.stack([x[:, : t + 1].mean(1) for t in range(5)], dim=1), 0.5)
    hidden = torch.tanh(x @ w["c_fc.weight"].T + w["c_fc.bias"])
    x = x + F.dropout(hidden @ w["c_proj.weight"].T + w["c_proj.bias"], 0.5)
    torch.testing.assert_close(logits, x @ w["lm_head.weight"].T + w["lm_head.bias"])


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
