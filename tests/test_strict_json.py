"""JSON from strangers: what no document of flashmore's holds is refused before it costs memory or time."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmore.strict_json import DEEPEST, loads

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text()
    | st.floats(-1e100, 1e100),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@given(VALUES)
def test_what_json_writes_comes_back(value: Any) -> None:
    assert loads(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"{}{}", b"\xff", b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e101", b"9" * 19,
        b"9" * 5000, b"-" + b"9" * 19, b'"\\ud800"', b'{"\\udfff": 1}', b"[" * 10**6, nested(DEEPEST + 1),
        b'"\xed\xa0\x80"', b'{"\xed\xb0\x80": 1}', b"\xef\xbb\xbf{}", '{"a": 1}'.encode("utf-16"),
        '{"a": 1}'.encode("utf-16-le"), '{"a": 1}'.encode("utf-32"), b'{"a":' * 900 + b"1" + b"}" * 900,
    ],
)  # fmt: skip
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        loads(data)


def test_the_deepest_document_and_the_largest_number_are_taken() -> None:
    assert loads(nested(DEEPEST)) == json.loads(nested(DEEPEST))
    assert loads(b"9223372036854775807") == 2**63 - 1


@pytest.mark.skipif(os.name != "posix", reason="needs limits of memory")
@pytest.mark.parametrize("piece", [b'"ab",', b"[],", b"{},", b"9e9,"])
def test_many_small_values_take_no_memory(piece: bytes) -> None:
    script = (
        "import resource\n"
        "from flashmore.strict_json import loads\n"
        f"data = b'[' + {piece!r} * (2**25 // {len(piece)}) + b'1]'\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28))\n"
        "try:\n    loads(data)\nexcept ValueError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "values" in done.stdout
