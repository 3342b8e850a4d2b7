"""Random inputs fit their call, and no query is left without keys."""

from typing import Any

import pytest
import torch

from flashmore.backends.contract import describe_call, random_inputs
from flashmore.call import CallOptions

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {"batch_size": 3, "n_head": 4, "length": 6, "source_length": 10, "head_dim": 8}


@pytest.mark.parametrize(
    "options",
    [
        {"n_kv_head": 2, "gqa": True, "value_dim": 5, "dtype": "bfloat16"},
        {"passes": "forward"},
        {"mask": "bool"},
        {"mask": "bool", "mask_dims": 1},
        {"mask": "padding"},
        {"mask": "float", "mask_dims": 4},
        {"mask": "float", "mask_dtype": "float32", "dtype": "float16"},
    ],
    ids=str,
)
def test_inputs_are_those_that_the_options_describe(options: dict[str, Any]) -> None:
    one = CallOptions(**SIZES, **options)
    q, k, v, mask = random_inputs(one.call("cpu"), CPU)
    assert describe_call(q, k, v, mask=mask, gqa=one.gqa) == one.call("cpu")
    again = random_inputs(one.call("cpu"), CPU)
    assert all(torch.equal(a, b) for a, b in zip((q, k, v), again[:3], strict=True))
    if mask is not None and mask.dtype == torch.bool:
        assert mask[..., 0].all(), "no query is without keys"
        assert not mask.all()


def test_padding_hides_the_last_keys_of_each_item() -> None:
    _, _, _, mask = random_inputs(
        CallOptions(**SIZES | {"source_length": 64}, mask="padding").call("cpu"), CPU
    )
    assert mask is not None
    seen = mask.sum(-1).flatten().tolist()
    assert len(set(seen)) > 1
    assert all(
        row.tolist() == [True] * n + [False] * (64 - n) for row, n in zip(mask[:, 0, 0], seen, strict=True)
    )
    assert min(seen) >= 32
