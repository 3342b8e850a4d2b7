"""A report says what its records say, all of it, and nothing that a record holds can break it."""

import json
import re
import shlex
import xml.etree.ElementTree as ET
from copy import deepcopy
from functools import cache
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from flashmore.benchmark.report.pages import Report, html_page, markdown, printable, report_on
from flashmore.benchmark.report.summaries import crossover_sentence, share_sentence
from flashmore.benchmark.report.values import Table, digits
from flashmore.measuring.result import read_record

GOLDEN = Path(__file__).parents[1] / "golden" / "records"
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
KINDS = ("step", "attention", "choose", "ablation")
HOSTILE = "</td><script>alert(1)</script> $\\oops$ | `code` *bold* \u202e\x00\x1b[31m 注意 &amp; $x"

Record = dict[str, Any]


def golden(kind: str) -> Record:
    return read_record(
        RESULTS / "epyc-2-cores-ablation.json" if kind == "ablation" else GOLDEN / f"{kind}-cpu.json"
    )


def elsewhere(record: Record) -> Record:
    """The same, as if another machine had measured it."""
    other = deepcopy(record)
    other["environment"] |= {"device": "cuda", "device_name": "Invented GPU", "capability": [9, 0]}
    return other


def reread(record: Record, folder: Path) -> Record:
    """Hold a changed record against the schema."""
    path = folder / "changed.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    return read_record(path)


def pages(*records: Record) -> tuple[str, str]:
    """The HTML page and the Markdown."""
    return page_of(*records), text_of(*records)


def page_of(*records: Record) -> str:
    """The HTML page."""
    return _page_of(json.dumps(records))


def text_of(*records: Record) -> str:
    """The Markdown."""
    return _text_of(json.dumps(records))


@cache
def _page_of(records: str) -> str:
    return html_page(_report(records))


@cache
def _text_of(records: str) -> str:
    return markdown(_report(records), "report")[0]


@cache  # drawing takes a second
def _report(records: str) -> Report:
    return report_on([(f"{number}.json", record) for number, record in enumerate(json.loads(records), 1)])


def tables_of(*records: Record) -> list[Table]:
    """The table of machines, those of several records, and those of each record."""
    report = _report(json.dumps(records))
    own = [setting.table for section in report.sections for setting in section.summary.settings]
    beside = [table for table in report.side_by_side if isinstance(table, Table)]
    return [report.machines, *beside, *own]


def texts_of(page: str) -> str:
    """What a reader sees."""
    return re.sub(r"\s+", " ", Page.read(page).text)


class Page(HTMLParser):
    """Ids, references and text of a page; fails on tags that do not match."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.outside: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    @classmethod
    def read(cls, page: str) -> "Page":
        parser = cls()
        parser.feed(page)
        parser.close()
        assert not parser.open
        return parser

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        for name, value in attrs:
            value = value or ""
            if name == "id":
                self.ids.append(value)
            if name in ("href", "xlink:href", "src"):
                (self.references if value.startswith("#") else self.outside).append(value.lstrip("#"))
            if name in ("aria-labelledby", "aria-describedby"):
                self.references += value.split()
            self.references += re.findall(r"url\(#([^)]+)\)", value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += data


@pytest.mark.parametrize("kind", KINDS)
def test_every_median_and_reason_of_a_record_is_in_the_page_and_in_the_markdown(kind: str) -> None:
    record = golden(kind)
    page, text = pages(record)
    numbers: list[str] = []
    reasons: set[str] = set()

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            if "median" in value:
                numbers.append(digits(value["median"]))
            reasons.update(value[name] for name in ("why_not", "why") if value.get(name))
            for entry in value.values():
                collect(entry)
        elif isinstance(value, list):
            for entry in value:
                collect(entry)

    collect(record)
    assert numbers
    assert reasons
    for told in (texts_of(page), text.replace("\\", "")):
        assert [number for number in numbers if number not in told] == []
        assert [reason for reason in reasons if reason not in told] == []
        assert record["environment"]["device_name"] in told
        for warning in record["warnings"]:
            assert warning["message"] in told
            assert warning["advice"] in told


def test_ratios_stand_with_interval_and_verdict_in_the_row_of_their_variant() -> None:
    record = golden("step")
    ratio = record["ratios"][0]
    [row] = [
        row
        for table in tables_of(record)
        if "verdict" in table.columns and f"T {record['context']}" in table.caption
        for row in table.rows
        if row["attention"] == ratio["to"]
    ]
    assert row[f"{ratio['of']} / this"] == f"{ratio['value']:.3f}"
    assert row["95 % interval"] == f"{ratio['low']:.3f} – {ratio['high']:.3f}"
    assert row["verdict"] == ratio["verdict"]


@pytest.mark.parametrize("verdict", ["faster", "slower", "no difference"])
def test_a_verdict_stands_out_in_both_formats(verdict: str) -> None:
    record = golden("step")
    record["ratios"][0]["verdict"] = verdict
    page, text = pages(record)
    assert f'<td class="{verdict.replace(" ", "-")}">{verdict}</td>' in page
    assert (f"| **{verdict}** |" if verdict != "no difference" else "| no difference |") in text


@pytest.mark.parametrize("kind", KINDS)
def test_both_formats_have_the_same_cells(kind: str) -> None:
    record = golden(kind)
    page, text = pages(record, elsewhere(record))
    body = re.sub(r"</t[hd]>", "\t", page)
    html_rows = [
        [unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in row.split("\t")[:-1]]
        for row in re.findall(r"<tr.*?</tr>", body.replace("<td></td>", "\t"), re.DOTALL)
    ]
    plain = re.sub(r"\*\*|\\", "", text)
    markdown_rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in plain.splitlines()
        if line.startswith("|") and "| ---" not in line
    ]
    assert len(html_rows) > 20
    assert html_rows == markdown_rows


def test_conclusions_stand_as_sentences() -> None:
    step, attention = golden("step"), golden("attention")
    told = texts_of(page_of(step, attention))
    for found in (step, *step["further_contexts"]):
        assert share_sentence(found) in told
    for found in attention["crossovers"]:
        setting = ("B", "H", "D", "dtype", "causal")
        ratios = [r for r in attention["ratios"] if all(r[name] == found[name] for name in setting)]
        assert crossover_sentence(found["T"], ratios) in told
    assert " ".join(step["command"]) in told


def test_two_machines_stand_side_by_side_and_only_what_differs_is_marked() -> None:
    record = golden("step")
    machines, *tables = tables_of(record, elsewhere(record))
    assert len(machines.columns) == 3
    assert "Invented GPU" in machines.columns[2]
    assert machines.differing == ["computes on", "device", "compute capability"]
    beside = [table for table in tables if table.columns == machines.columns]
    assert len(beside) == 1 + len(record["further_contexts"])
    median = digits(record["variants"][0]["step_ms"]["median"])
    name = f"{record['variants'][0]['name']}, ms"
    assert dict(zip(machines.columns, (name, median, median), strict=True)) in beside[0].rows
    for page, marked in zip(pages(record, elsewhere(record)), ('<tr class="differs">', "**≠ "), strict=True):
        assert page.count(marked) == 3


def test_times_of_two_records_have_a_ratio_and_their_titles_differ() -> None:
    record = golden("step")
    twice = deepcopy(record)
    for variant in (one for one in twice["variants"] if one["ok"]):
        variant["step_ms"] = {name: value / 2 for name, value in variant["step_ms"].items()}
    text = text_of(record, twice)
    name = record["variants"][0]["name"]
    machines, *tables = tables_of(record, twice)
    row = dict(zip(machines.columns, (f"{name}: first / this", "1.00", "2.00"), strict=True))
    assert any(row in table.rows for table in tables)
    headings = re.findall(r"^## (Record \d: .*)$", text, re.MULTILINE)
    assert len({heading.partition(":")[2] for heading in headings}) == 2
    assert text.count("![Record 1: ") == text.count("![Record 2: ") == 1


def test_what_an_older_record_lacks_is_blank() -> None:
    record = golden("step")
    newer = deepcopy(record)
    newer["environment"]["fuse_attention"] = 2
    machines = tables_of(record, newer)[0]
    assert {tuple(row.values())[1:] for row in machines.rows if "Inductor" in row[""]} == {("", "2")}


def test_what_is_undecided_and_what_the_medians_contradict_is_said() -> None:
    record = golden("step")
    of, to, *_ = (variant for variant in record["variants"] if variant["ok"])
    of["step_ms"]["median"] = 0.5 * to["step_ms"]["median"]
    record["ratios"][0] |= {
        "value": 1.1,
        "low": 0.9,
        "high": 1.3,
        "verdict": "inconclusive",
        "more_blocks": 21,
    }
    text = text_of(record)
    ratio = f"{of['name']} / {to['name']}"
    assert f"inconclusive, with an estimate of the blocks still needed: {ratio} (21)" in text
    assert f"the medians contradict the ratio of {ratio}" in text


def test_ratios_without_the_rows_that_they_compare_break_nothing() -> None:
    for kind in KINDS:
        record = golden(kind)
        ratios = record.get("ratios", []) + [one.get("ratio") for one in record.get("variants", [])]
        for ratio in filter(None, ratios):
            ratio["of"] = "nothing"
        assert text_of(record)


def test_an_ablation_that_keeps_nothing_says_so() -> None:
    record = golden("ablation")
    for variant in record["variants"][1:]:
        variant["kept"] = False
    assert "No speed-up is kept" in text_of(record)


def test_no_name_that_a_record_brings_hides_a_row_of_the_machines() -> None:
    record = golden("step")
    record["complete"] = False
    record["environment"] |= {"whole": "yes", "system": "none"}
    machines = tables_of(record)[0]
    found = [(row[""], row[machines.columns[1]]) for row in machines.rows]
    assert {("whole", "no: interrupted"), ("system", record["environment"]["os"])} <= set(found)


def test_records_of_other_shapes_are_not_put_into_one_row() -> None:
    record = golden("step")
    other = elsewhere(record)
    other["batch"] += 1
    other["further_contexts"] = []
    assert "no two of these records measured the same shape" in text_of(record, other)


def test_configs_that_differ_are_told() -> None:
    record = golden("step")
    other = elsewhere(record)
    other["config"]["learning_rate"] = 42.0
    assert "| **≠ learning\\_rate** |" in text_of(record, other)
    assert "configs of these records differ" not in text_of(record, elsewhere(record))


def test_an_interrupted_record_is_marked_before_its_findings_and_again_at_its_tables() -> None:
    record = golden("attention")
    assert "Incomplete" not in page_of(record)
    record["complete"] = False
    for page in pages(record):
        assert page.count("Incomplete") == 2
        assert page.index("Incomplete") < page.index("Fused attention is faster")


def test_records_interrupted_before_anything_was_timed_have_a_report(tmp_path: Path) -> None:
    attention, step = golden("attention"), golden("step")
    attention |= {"rows": [], "ratios": [], "crossovers": [], "crossover_T": None, "complete": False}
    for found in (step, *step["further_contexts"]):
        found |= {"ratios": [], "attention_share": None, "most_gain": None, "attention_samples_ms": []}
        found |= {"attention_share_low": None, "attention_share_high": None}
        for variant in found["variants"]:
            variant |= {"ok": False, "why_not": "interrupted before it was timed"}
            variant |= {"step_ms": None, "samples_ms": [], "budget_used": None}
    page, text = pages(reread(attention, tmp_path), reread(step, tmp_path))
    assert "Nothing was measured" in text
    assert "Nothing was timed" in text
    assert "<svg" not in page


def hostile(value: Any, key: str = "") -> Any:
    """The same record with hostile text wherever the schema takes any text."""
    fixed = ("schema", "kind", "device", "code", "verdict", "pass", "exactness")
    if isinstance(value, dict):
        return {name: hostile(entry, name) for name, entry in value.items()}
    if isinstance(value, list):
        return [hostile(entry, key) for entry in value]
    return value + HOSTILE if isinstance(value, str) and key not in fixed else value


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_a_record_holds_becomes_markup(kind: str, tmp_path: Path) -> None:
    record = reread(hostile(golden(kind)), tmp_path)
    page, text = pages(record, elsewhere(record))
    parsed = Page.read(page)
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert "<script>alert(1)</script>" in parsed.text
    assert not re.search(r"(?<!\\)<script", re.sub(r"^    .*$", "", text, flags=re.MULTILINE))
    for told in (page, text):
        assert not set(told) & {"\x00", "\x1b", "\u202e"}
        told.encode()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", row)) - 1 for row in rows}
    assert widths <= {len(table.columns) for table in tables_of(record, record)}


def test_a_command_cannot_leave_its_block() -> None:
    record = golden("choose")
    record["command"] = ["flashmore", "```\n# oops", "````"]
    lines = text_of(record).splitlines()
    place = lines.index("### The command that measured this")
    [line] = [line for line in lines[place:] if "oops" in line]
    assert line == f"    {shlex.join(printable(record['command']))}"
    assert lines[place + 1 : place + 4] == ["", line, ""]


def test_ids_are_unique_references_resolve_and_nothing_is_loaded() -> None:
    step, attention = golden("step"), golden("attention")
    page = Page.read(page_of(step, elsewhere(step), attention, elsewhere(attention)))
    assert len(page.ids) == len(set(page.ids))
    assert page.references
    assert set(page.references) <= set(page.ids)
    assert page.outside == ["data:,"]
    assert sum(tag == "svg" for tag, _ in page.tags) == 6


def test_tables_have_captions_scopes_and_a_region_and_plots_a_name() -> None:
    page = Page.read(page_of(golden("step"), golden("attention")))
    count = {
        tag: sum(found == tag for found, _ in page.tags) for tag in ("table", "caption", "svg", "figcaption")
    }
    assert count["table"] == count["caption"] > 0
    assert count["svg"] == count["figcaption"] == 3
    assert {attributes["scope"] for tag, attributes in page.tags if tag == "th"} == {"col", "row"}
    plots = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    regions = [attributes for _, attributes in page.tags if attributes.get("role") == "region"]
    assert len(regions) == count["table"] + count["svg"] + 2  # and the two commands
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in regions)


def test_the_same_records_make_the_same_bytes() -> None:
    records = [("a", golden("step")), ("b", golden("attention"))]
    one, other = report_on(records), report_on(records)  # each draws its plots once
    assert html_page(one) == html_page(other)
    assert markdown(one, "x") == markdown(other, "x")


def test_markdown_names_every_picture_that_it_comes_with() -> None:
    report = report_on([("a", golden("step")), ("b", golden("attention"))])
    text, pictures = markdown(report, "two_machines 1 > 0")
    targets = re.findall(r"\(<(.+?)(?<!\\)>\)", text)
    assert [re.sub(r"\\(.)", r"\1", target) for target in targets] == list(pictures)
    assert len(pictures) == 3
    for picture in pictures.values():
        assert ET.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
