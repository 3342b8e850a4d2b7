"""The attention of a Hugging Face model, from its config.json."""

from collections.abc import Sequence
from pathlib import Path

from flashmore.cli.parse import value_of
from flashmore.errors import ConfigError
from flashmore.strict_json import read

LARGEST = 2**20
"""Most bytes read; a config.json has a few thousand."""


def heads_in(argv: Sequence[str]) -> dict[str, int | bool]:
    """The options `n_head`, `n_kv_head`, `gqa` and `head_dim` of the model that --from-config names, if any.

    Unknown keys of the file are ignored.

    Source: https://huggingface.co/docs/transformers/model_doc/llama#transformers.LlamaConfig

    Raises:
        ConfigError: a key that is missing or not a positive whole number.
        DataError: the file cannot be read, or is not JSON.
    """
    if not (path := value_of("--from-config", argv)):
        return {}
    wanted = f"a Hugging Face model's sizes in {path}"
    valid = "num_attention_heads, and head_dim or hidden_size"
    found = read(Path(path), wanted, valid, LARGEST, again=False)

    def size(name: str, otherwise: int | None = None) -> int:
        value = found.get(name) if isinstance(found, dict) else None
        value = otherwise if value is None else value
        if value is None:
            raise ConfigError(wanted, f"no {name}", valid)
        if type(value) is not int or value < 1:
            raise ConfigError(wanted, f"{name} {value!r}"[:200], "a whole number from 1")
        return value

    heads = size("num_attention_heads")
    groups = size("num_key_value_heads", heads)
    options: dict[str, int | bool] = {"n_head": heads, "n_kv_head": groups, "gqa": groups != heads}
    if isinstance(found, dict) and found.get("head_dim") is not None:
        return options | {"head_dim": size("head_dim")}
    width = size("hidden_size")
    if width % heads:
        raise ConfigError(wanted, f"hidden_size {width} and num_attention_heads {heads}", "a head_dim")
    return options | {"head_dim": width // heads}
