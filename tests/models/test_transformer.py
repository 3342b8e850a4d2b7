"""The Transformer against GPT-2's equations written out in plain tensor algebra."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flashmore.errors import BackendUnavailable
from flashmore.models.config import ACTIVATIONS, ModelConfig
from flashmore.models.registry import build, count_parameters
from flashmore.models.transformer import ACTIVATE, Transformer
from flashmore.specs import backends

MAKEMORE = ModelConfig(model="transformer", vocab_size=27, block_size=16)


def words() -> tuple[Tensor, Tensor]:
    """Ids and targets of random words of 1 to 15 letters, padded as the trainer pads them, (5, 16) each."""
    generator = torch.Generator().manual_seed(2)
    ids, targets = torch.zeros(5, 16, dtype=torch.int64), torch.full((5, 16), -1)
    for row, length in enumerate([1, 4, 7, 15, 6]):
        word = torch.randint(1, 27, (length,), generator=generator)
        ids[row, 1 : length + 1] = word
        targets[row, :length] = word
        targets[row, length] = 0
    return ids, targets


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.sum(-1, keepdim=True) / x.size(-1)
    variance = ((x - mean) ** 2).sum(-1, keepdim=True) / x.size(-1)
    return (x - mean) / (variance + 1e-5) ** 0.5 * weight + bias


def attend(x: Tensor, w: dict[str, Tensor], at: str, heads: int) -> Tensor:
    """One head after the other, each with its own columns of q, k and v. x is (T, C)."""
    T, C = x.shape
    D = C // heads
    qkv = x @ w[f"{at}.c_attn.weight"].T + w[f"{at}.c_attn.bias"]
    future = torch.ones(T, T).triu(1) == 1
    outputs = []
    for head in range(heads):
        q, k, v = (qkv[:, part * C + head * D : part * C + (head + 1) * D] for part in range(3))
        scores = (q @ k.T / math.sqrt(D)).masked_fill(future, -math.inf)
        powers = (scores - scores.amax(1, keepdim=True)).exp()
        outputs.append(powers / powers.sum(1, keepdim=True) @ v)
    return torch.cat(outputs, 1) @ w[f"{at}.c_proj.weight"].T + w[f"{at}.c_proj.bias"]


def feed_forward(x: Tensor, w: dict[str, Tensor], at: str) -> Tensor:
    x = x @ w[f"{at}.c_fc.weight"].T + w[f"{at}.c_fc.bias"]
    x = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x @ w[f"{at}.c_proj.weight"].T + w[f"{at}.c_proj.bias"]


def loss_by_hand(w: dict[str, Tensor], ids: Tensor, targets: Tensor, layers: int, heads: int) -> Tensor:
    total, characters = torch.zeros((), dtype=torch.float64), 0
    for row, wanted in zip(ids, targets, strict=True):
        x = torch.stack([w["wte.weight"][c] + w["wpe.weight"][t] for t, c in enumerate(row)])
        for layer in range(layers):
            at = f"blocks.{layer}"
            x = x + attend(
                layer_norm(x, w[f"{at}.ln_1.weight"], w[f"{at}.ln_1.bias"]), w, f"{at}.attention", heads
            )
            x = x + feed_forward(layer_norm(x, w[f"{at}.ln_2.weight"], w[f"{at}.ln_2.bias"]), w, f"{at}.mlp")
        logits = layer_norm(x, w["ln_f.weight"], w["ln_f.bias"]) @ w["lm_head.weight"].T
        for t, c in enumerate(wanted.tolist()):
            if c != -1:
                total = total + logits[t].exp().sum().log() - logits[t, c]
                characters += 1
    return total / characters


@pytest.mark.parametrize("backend", tuple(backends()))
def test_loss_and_gradients_are_those_of_the_equations(backend: str) -> None:
    model = build(
        ModelConfig("transformer", 27, block_size=16, n_layer=3, n_head=4, n_embd=20, attention=backend),
        seed=0,
    ).double()
    with (
        torch.no_grad()
    ):  # away from the normalisations' start, where weights of 1 and biases of 0 hide mistakes
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    ids, targets = words()
    try:
        loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), ignore_index=-1)
    except BackendUnavailable as error:
        pytest.skip(f"{backend}: {'; '.join(error.reasons)}")
    torch.autograd.backward(loss)

    w = {key: value.detach().clone().requires_grad_() for key, value in model.named_parameters()}
    expected = loss_by_hand(w, ids, targets, layers=3, heads=4)
    torch.autograd.backward(expected)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, w[key].grad, rtol=1e-8, atol=1e-12)


def test_parameters_at_makemores_sizes() -> None:
    assert count_parameters(build(MAKEMORE, seed=0)) == 204_544


def test_layout_at_makemores_sizes() -> None:
    """Every tensor of GPT-2's layout, so that weights can go to and fro by renaming alone."""
    block = {
        "ln_1.weight": (64,),
        "ln_1.bias": (64,),
        "attention.c_attn.weight": (192, 64),
        "attention.c_attn.bias": (192,),
        "attention.c_proj.weight": (64, 64),
        "attention.c_proj.bias": (64,),
        "ln_2.weight": (64,),
        "ln_2.bias": (64,),
        "mlp.c_fc.weight": (256, 64),
        "mlp.c_fc.bias": (256,),
        "mlp.c_proj.weight": (64, 256),
        "mlp.c_proj.bias": (64,),
    }
    layout = {f"blocks.{layer}.{key}": shape for layer in range(4) for key, shape in block.items()}
    layout |= {"wte.weight": (27, 64), "wpe.weight": (16, 64), "lm_head.weight": (27, 64)}
    layout |= {"ln_f.weight": (64,), "ln_f.bias": (64,)}
    assert {key: tuple(value.shape) for key, value in build(MAKEMORE, seed=0).state_dict().items()} == layout


def test_the_output_layer_is_not_the_embedding() -> None:
    weights = build(MAKEMORE, seed=0).state_dict()
    assert not torch.equal(weights["lm_head.weight"], weights["wte.weight"])


def test_with_all_embeddings_and_branches_dropped_only_the_last_bias_is_left() -> None:
    config = ModelConfig(model="transformer", vocab_size=27, block_size=16, dropout=1 - 1e-12)
    model = build(config, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    w = model.state_dict()
    logits = model(words()[0])
    torch.testing.assert_close(logits, (w["lm_head.weight"] @ w["ln_f.bias"]).expand(5, 16, 27))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_activation_is_the_one_of_its_name(activation: str) -> None:
    x = torch.linspace(-3, 3, 101, dtype=torch.float64)
    normal = (1 + torch.erf(x / 2**0.5)) / 2
    cubic = (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)
    wanted = {
        "gelu": x * normal,
        "gelu_tanh": x * (1 + torch.tanh(cubic)) / 2,
        "relu_squared": torch.where(x > 0, x * x, 0),
    }
    torch.testing.assert_close(ACTIVATE[activation](x), wanted[activation])


def test_a_start_is_gpt2s() -> None:
    tied = ModelConfig("transformer", 65, block_size=64, n_layer=8, n_embd=128, tie_weights=True, init="gpt2")
    weights = dict(build(tied, 0).named_parameters())
    assert "lm_head.weight" not in weights
    for name, weight in weights.items():
        if name.endswith("c_proj.weight"):
            assert weight.std().item() == pytest.approx(0.02 / 4, rel=0.03)
        elif weight.dim() > 1:
            assert weight.std().item() == pytest.approx(0.02, rel=0.03)
        elif name.endswith("bias"):
            assert (weight == 0).all()


def test_without_bias_there_is_none() -> None:
    plain = build(ModelConfig("transformer", 65, block_size=64, bias=False), 0)
    assert not [name for name, _ in plain.named_parameters() if name.endswith("bias")]


@pytest.mark.parametrize("changes", [{}, {"n_head": 2, "n_embd": 128}, {"n_head": 1, "bias": False}])
def test_heads_start_with_attention_to_previous_positions(changes: dict[str, Any]) -> None:
    config = ModelConfig("transformer", 65, block_size=20, init="previous_token", **changes)
    model = build(config, 0)
    assert isinstance(model, Transformer)
    block: Any = model.blocks[0]
    x = block.ln_1(model.wte(torch.randint(65, (3, 20))) + model.wpe.weight)
    q, k, _ = (part.transpose(1, 2) for part in block.attention.heads(block.attention.c_attn(x)))
    scores = (q @ k.mT) / math.sqrt(q.size(-1))  # (B, H, T, T)
    weights = scores.masked_fill(~torch.ones(20, 20).tril().bool(), -math.inf).softmax(-1)
    for head in range(config.n_head):
        assert weights[:, head].diagonal(-head - 1, dim1=1, dim2=2).min() > 0.99


def test_too_few_channels_for_positions_start_as_in_pytorch() -> None:
    small = ModelConfig("transformer", 65, block_size=20, n_embd=4, init="previous_token")
    weights = build(small, 0).state_dict()
    for name, weight in build(replace(small, init="torch"), 0).state_dict().items():
        assert torch.equal(weights[name], weight)


def test_blocks_that_start_from_zero_residuals_do_nothing() -> None:
    config = ModelConfig("transformer", 65, block_size=64, n_embd=64, tie_weights=True, init="zero_residual")
    model = build(config, 0)
    assert isinstance(model, Transformer)
    ids = torch.randint(65, (2, 64))
    wanted = F.layer_norm(model.wte(ids) + model.wpe.weight, (64,)) @ model.wte.weight.T
    torch.testing.assert_close(model(ids), wanted)
    assert model.wte.weight.std().item() == pytest.approx(0.1, rel=0.03)
