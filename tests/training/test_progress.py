"""What the progress line says besides its figures."""

from types import SimpleNamespace

import psutil
import pytest

from flashmore.config import TrainConfig
from flashmore.measuring.environment import on_battery
from flashmore.training.progress import ProgressLine, conditions


@pytest.mark.parametrize(
    ("load", "plugged", "told"),
    [(0.2, None, []), (0.2, True, []), (9.0, True, ["load average 9.0"]), (0.2, False, ["on battery power"])],
)
def test_a_busy_machine_and_battery_power_are_told(
    load: float, plugged: bool | None, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    battery = None if plugged is None else SimpleNamespace(power_plugged=plugged)
    monkeypatch.setattr(psutil, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    assert on_battery() == (plugged is False)
    found = conditions()
    assert len(found) == len(told)
    assert all(part in line for part, line in zip(told, found, strict=True))


def test_steps_that_became_slower_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine()
    line.config = TrainConfig(max_steps=100, eval_interval=1000)
    line.task = line.progress.add_task("bigram", total=100, figures="")
    for step, step_ms in enumerate((40.0, 20.0, 25.0, 29.0, 42.0, 43.0, 60.0, 62.0)):
        line.stepped(step, 1.0, step_ms, 1.0)
    told = [text for text in capsys.readouterr().err.splitlines() if "times as long" in text]
    assert [text.split()[3] for text in told] == ["2.1"]
