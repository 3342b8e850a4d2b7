"""Records become figures: what is drawn is what was measured, log–log, with slopes to hold it against."""

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flashmore.benchmark.attention.bench import bench_attention
from flashmore.benchmark.attention.plan import AttentionPlan
from flashmore.benchmark.plots import UNITS, attention_plot, step_plot
from flashmore.errors import StorageError
from flashmore.plotting import save_picture

Record = dict[str, Any]
LENGTHS = (16, 32, 64)


@pytest.fixture(scope="module")
def attention() -> Record:
    plan = AttentionPlan(
        length=LENGTHS, batch_size=(1,), n_head=(2,), head_dim=(8,), causal=True, full=True, device="cpu"
    )
    return bench_attention(plan)


@pytest.fixture
def step() -> Record:
    def variant(name: str, median: float) -> Record:
        samples = [[median - 0.1, median, median + 0.1], [median - 0.2, median, median + 0.2]]
        spread = {"median": median, "low": median - 0.1, "high": median + 0.1}
        return {"name": name, "ok": True, "why_not": None, "step_ms": spread, "samples_ms": samples}

    left_out = {"name": "cudnn", "ok": False, "why_not": "no such kernel", "step_ms": None, "samples_ms": []}
    longer = {"context": 256, "batch": 4, "variants": [variant("manual", 20.0), variant("flash", 12.0)]}
    first = {
        "context": 16,
        "batch": 32,
        "variants": [variant("manual", 6.77), variant("flash", 5.81), left_out],
    }
    return first | {"further_contexts": [longer]}


def panels(figure: Figure) -> list[Axes]:
    figure.draw_without_rendering()
    return [axes for axes in figure.get_axes() if axes.axison]


def points(line: Line2D) -> list[tuple[float, float]]:
    return [(x, y) for x, y in np.asarray(line.get_xydata(), dtype=float).tolist()]


def measured_lines(axes: Axes) -> dict[str, dict[float, float]]:
    return {
        str(line.get_label()): dict(points(line))
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_")
    }


@pytest.mark.parametrize("value", UNITS)
def test_lines_hold_the_rows_of_both_passes_in_a_panel_for_each_setting(
    attention: Record, value: str
) -> None:
    axes_of = panels(attention_plot(attention, value))
    assert [axes.get_title("left") for axes in axes_of] == [
        "B 1 · H 2 · D 8 · float32 · causal",
        "B 1 · H 2 · D 8 · float32 · every query sees every key",
    ]
    for axes, causal in zip(axes_of, (True, False), strict=True):
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert set(measured_lines(axes)) == {"manual", "math", "flash"}
        for row in attention["rows"]:
            if row["ok"] and row["pass"] == "both" and row["causal"] == causal:
                here = row["time_ms"]["median"] if value == "time_ms" else row["peak_bytes"] / 2**20
                assert measured_lines(axes)[row["backend"]][row["T"]] == here


@pytest.mark.parametrize("value", UNITS)
def test_everything_measured_is_within_the_axes(attention: Record, value: str) -> None:
    for axes in panels(attention_plot(attention, value)):
        low, high = axes.get_ylim()
        for line in measured_lines(axes).values():
            assert all(low < measured < high for measured in line.values())
        assert [label.get_text() for label in axes.get_xticklabels()] == ["16", "32", "64"]


def test_the_slopes_are_those_of_t_and_of_its_square(attention: Record) -> None:
    for axes in panels(attention_plot(attention, "peak_bytes")):
        slopes = {line.get_gid(): points(line) for line in axes.get_lines() if line.get_gid()}
        for power in (1, 2):
            (first, low), (last, high) = slopes[f"slope {power}"]
            assert math.log(high / low) / math.log(last / first) == pytest.approx(power)
        words = {text.get_text() for text in axes.texts}
        assert {"∝ T", "∝ T²"} <= words


def test_a_backend_that_was_left_out_at_a_length_has_no_point_there(attention: Record) -> None:
    rows = [
        row | {"ok": False, "time_ms": None} if (row["backend"], row["T"]) == ("manual", 64) else row
        for row in attention["rows"]
    ]
    lines = measured_lines(panels(attention_plot({"rows": rows}, "time_ms"))[0])
    assert list(lines["manual"]) == [16, 32]
    assert list(lines["flash"]) == list(LENGTHS)


def test_nothing_measured_is_said(attention: Record) -> None:
    (axes,) = attention_plot({"rows": []}, "time_ms").get_axes()
    assert [text.get_text() for text in axes.texts] == ["nothing was measured"]
    left_out = [row | {"ok": False, "time_ms": None, "peak_bytes": None} for row in attention["rows"]]
    for axes in panels(attention_plot({"rows": left_out}, *UNITS)):
        assert [text.get_text() for text in axes.texts] == ["nothing was measured"]


def test_files_are_really_drawn(attention: Record, tmp_path: Path) -> None:
    picture = tmp_path / "new" / "attention.png"
    save_picture(lambda: attention_plot(attention, *UNITS), picture)
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert picture.stat().st_size > 10_000
    save_picture(lambda: attention_plot(attention, "time_ms"), picture.with_suffix(".pdf"))
    assert picture.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def test_text_can_stay_text_and_the_ground_is_transparent(attention: Record, tmp_path: Path) -> None:
    path = tmp_path / "time.svg"
    figure = attention_plot(attention, "time_ms")
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(path)
    assert ">flash</text>" in path.read_text(encoding="utf-8")
    grounds = [figure.get_facecolor(), *(axes.get_facecolor() for axes in figure.get_axes())]
    assert all(mpl.colors.to_rgba(ground)[3] == 0 for ground in grounds)


def test_dollar_signs_in_names_and_reasons_are_text_and_no_formula(
    attention: Record, step: Record, tmp_path: Path
) -> None:
    for variant in step["variants"]:
        variant["name"] = r"$\oops$"
        variant["why_not"] = r"costs $1 and $\oops"
    save_picture(lambda: step_plot(step), tmp_path / "step.png")
    rows = [row | {"backend": r"$\oops$"} for row in attention["rows"]]
    save_picture(lambda: attention_plot({"rows": rows}, *UNITS), tmp_path / "attention.png")


def test_a_picture_that_cannot_be_written_is_a_storage_error(attention: Record, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        save_picture(lambda: attention_plot(attention, "time_ms"), tmp_path / "file" / "below.png")


def test_steps_show_every_sample_and_why_a_variant_has_none(step: Record) -> None:
    first, longer = panels(step_plot(step))
    assert first.get_title("left") == "T 16 · batch 32"
    assert [label.get_text() for label in first.get_yticklabels()] == ["manual", "flash", "cudnn"]
    dots = [line for line in first.get_lines() if line.get_marker() == "."]
    assert [len(points(line)) for line in dots] == [6, 6]
    words = {text.get_text() for text in first.texts}
    assert words == {"6.77 ms", "5.81 ms", "no such kernel"}
    assert longer.get_title("left") == "T 256 · batch 4"


def test_samples_beyond_the_axis_are_counted(step: Record) -> None:
    step["variants"][0]["samples_ms"][0][0] = 900.0
    first, _ = panels(step_plot(step))
    assert first.get_xlim()[0] == 0
    assert first.get_xlim()[1] < 900
    assert "(1 outside the axis)" in first.get_xlabel()


def test_one_length_has_no_slopes(attention: Record) -> None:
    one = attention | {"rows": [row for row in attention["rows"] if row["T"] == attention["rows"][0]["T"]]}
    for axes in panels(attention_plot(one, "time_ms")):
        assert not any("∝" in text.get_text() for text in axes.texts)
        assert not any((line.get_gid() or "").startswith("slope") for line in axes.lines)
