"""Records: written whole, read back, and refused in three parts where they are none."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator

from flashmore.errors import DataError, StorageError
from flashmore.measuring.record import schema
from flashmore.measuring.result import (
    SCHEMA,
    VERSION,
    as_text,
    make_record,
    read_record,
    write_record,
)

ROOT = Path(__file__).parents[2]
AT_ONE_CONTEXT: dict[str, Any] = {
    "context": 16,
    "batch": 32,
    "variants": [
        {
            "name": "manual",
            "ok": True,
            "why_not": None,
            "budget_used": 0.1,
            "step_ms": {"median": 2.0, "low": 1.0, "high": 3.0},
            "samples_ms": [[1.0, 2.0], [3.0, 2.0]],
            "peak_bytes": 1000,
        },
        {
            "name": "cudnn",
            "ok": False,
            "why_not": "PyTorch has no CPU kernel of this name",
            "budget_used": None,
            "step_ms": None,
            "samples_ms": [],
            "peak_bytes": None,
        },
    ],
    "ratios": [],
    "attention_share": 0.2,
    "attention_share_low": 0.1,
    "attention_share_high": 0.3,
    "attention_samples_ms": [[0.4], [0.4]],
    "most_gain": 1.25,
    "notes": [],
}
BODY = {**AT_ONE_CONTEXT, "config": {}, "further_contexts": [AT_ONE_CONTEXT], "warnings": []}


@pytest.fixture
def record() -> dict[str, Any]:
    return make_record("step", torch.device("cpu"), BODY)


def test_the_schema_is_a_schema_and_describes_every_record_of_this_repository() -> None:
    Draft202012Validator.check_schema(schema())
    assert schema()["$defs"]["Envelope"]["properties"]["version"]["enum"] == [VERSION]
    for path in (*ROOT.glob("tests/golden/records/*.json"), *ROOT.glob("benchmarks/results/*.json")):
        document = json.loads(path.read_bytes())
        if document.get("schema") == SCHEMA:
            assert read_record(path) == document
            Draft202012Validator(schema()).validate(document)


def test_what_was_written_is_read_back(record: dict[str, Any], tmp_path: Path) -> None:
    write_record(record, tmp_path / "new folder" / "record.json")
    assert read_record(tmp_path / "new folder" / "record.json") == record
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["record.json"]


def test_a_record_that_was_cut_off_anywhere_is_refused(record: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_record(record, path)
    whole = path.read_bytes()
    for length in range(1, len(whole.rstrip()), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="incomplete JSON"):
            read_record(path)


def test_another_version_is_refused_with_its_number(record: dict[str, Any], tmp_path: Path) -> None:
    write_record(record | {"version": VERSION + 1}, tmp_path / "record.json")
    with pytest.raises(DataError, match=f"schema version {VERSION + 1}"):
        read_record(tmp_path / "record.json")


@pytest.mark.parametrize("text", ["[]", "{}", '"record"', '{"schema": "another"}', "1", "null"])
def test_another_json_document_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="another kind"):
        read_record(tmp_path / "record.json")


@pytest.mark.parametrize(
    ("content", "found"), [(b"\xff\xfe\x00", "JSON"), (b"\x89PNG\r\n", "JSON"), (b"", "an empty file")]
)
def test_a_file_that_is_no_text_is_refused(content: bytes, found: str, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(DataError, match=found):
        read_record(tmp_path / "record.json")


def test_a_file_that_is_not_there_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(DataError):
            read_record(path)


@pytest.mark.parametrize(
    "damage",
    [
        {
            "ratios": [
                {"of": "manual", "to": "flash", "value": 1.1, "low": 1.0, "high": 1.2, "verdict": "good"}
            ]
        },
        {"variants": [AT_ONE_CONTEXT["variants"][1] | {"samples_ms": [[1.0]]}]},
        {"variants": [AT_ONE_CONTEXT["variants"][0] | {"why_not": "it is slow"}]},
        {"variants": [AT_ONE_CONTEXT["variants"][0] | {"samples_ms": [[0.0]]}]},
        {"warnings": [{"code": "bad mood", "message": "", "advice": ""}]},
        {"variants": [AT_ONE_CONTEXT["variants"][0] | {"samples_ms": []}]},
        {"variants": [AT_ONE_CONTEXT["variants"][1] | {"step_ms": AT_ONE_CONTEXT["variants"][0]["step_ms"]}]},
        {"variants": [AT_ONE_CONTEXT["variants"][1] | {"why_not": None}]},
        {"variants": [AT_ONE_CONTEXT["variants"][0] | {"mood": 1}]},
        {"further_contexts": [AT_ONE_CONTEXT | {"batch": True}]},
        {"attention_share": "much"},
        {"environment": {}},
        {"kind": "mood"},
        {"kind": ["step"]},
    ],
    ids=lambda damage: next(iter(damage)),
)
def test_what_does_not_fit_the_schema_is_refused_by_its_place(
    damage: dict[str, Any], record: dict[str, Any], tmp_path: Path
) -> None:
    write_record(record | damage, tmp_path / "record.json")
    with pytest.raises(DataError, match=rf"at `\$\.{next(iter(damage))}"):
        read_record(tmp_path / "record.json")


@pytest.mark.parametrize(
    ("name", "part", "damage"),
    [
        ("tests/golden/records/attention-cpu.json", "rows", {"tflop_per_s": None}),
        ("benchmarks/results/epyc-2-cores-ablation.json", "variants", {"characters_per_s": None}),
        ("benchmarks/results/epyc-2-cores-ablation.json", "variants", {"ratio": None}),
        ("benchmarks/results/epyc-2-cores-ablation.json", "variants", {"ratio_before": None}),
    ],
)
def test_a_record_without_a_number_that_a_report_needs_is_refused(
    name: str, part: str, damage: dict[str, Any], tmp_path: Path
) -> None:
    document = json.loads((ROOT / name).read_bytes())
    document[part] = [one | damage if one["ok"] else one for one in document[part]]
    write_record(document, tmp_path / "record.json")
    with pytest.raises(DataError, match=r"contradict|no ratios"):
        read_record(tmp_path / "record.json")


def test_unknown_and_missing_fields_are_named(record: dict[str, Any], tmp_path: Path) -> None:
    write_record(record | {"mood": 1}, tmp_path / "record.json")
    with pytest.raises(DataError, match="unknown field `mood`"):
        read_record(tmp_path / "record.json")
    del record["complete"]
    write_record(record, tmp_path / "record.json")
    with pytest.raises(DataError, match="missing required field `complete`"):
        read_record(tmp_path / "record.json")


def test_a_number_that_json_lacks_is_never_written(record: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_record(record, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        write_record(record | {"attention_share": float("nan")}, path)
    assert path.read_bytes() == before


def test_a_disk_that_refuses_leaves_what_stood_there(record: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.mkdir()
    (path / "kept").write_text("kept", encoding="utf-8")
    with pytest.raises(StorageError, match="record"):
        write_record(record, path)
    assert [child.name for child in tmp_path.iterdir()] == ["record.json"]
    assert json.dumps((path / "kept").read_text(encoding="utf-8")) == '"kept"'


def test_a_link_that_lies_beside_a_record_is_not_written_through(
    record: dict[str, Any], tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine", encoding="utf-8")
    (tmp_path / "record.json.new").symlink_to(outside)
    write_record(record, tmp_path / "record.json")
    assert outside.read_text(encoding="utf-8") == "mine"
    assert read_record(tmp_path / "record.json") == record


@pytest.mark.skipif(os.name != "posix", reason="needs pipes with a name, and devices")
def test_what_could_be_read_without_end_is_no_record(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "huge.json").touch()
    os.truncate(tmp_path / "huge.json", 2**40)
    for path, found in (
        (tmp_path / "pipe.json", "a pipe"),
        (Path("/dev/zero"), "a device"),
        (tmp_path / "huge.json", "a sparse file"),
    ):
        with pytest.raises(DataError, match=found):
            read_record(path)


@pytest.mark.parametrize("value", ["9" * 400, "1e101", "[" * 900 + "]" * 900, "[" + "1," * 10**6 + "1]"])
def test_what_no_record_holds_is_refused(value: str, record: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record | {"attention_share": "odd"}).replace('"odd"', value), encoding="utf-8")
    with pytest.raises(DataError, match="record"):
        read_record(path)


def test_a_document_as_text_is_itself_with_lists_of_numbers_on_one_line() -> None:
    document = {
        "samples_ms": [[1.5, 2e-07, -3], []],
        "words": ["a, 1", "[ 2 ]"],
        "none": None,
        "deep": {"x": [7]},
    }
    text = as_text(document)
    assert json.loads(text) == document
    assert "[1.5, 2e-07, -3]" in text
    assert '"x": [7]' in text
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_text({"x": float("nan")})
