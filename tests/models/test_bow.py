"""The bag of words against a loop over positions."""

import torch
import torch.nn.functional as F

from flashmore.models.config import ModelConfig
from flashmore.models.registry import build


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
