"""What a record says of the machine."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flashmore.measuring.environment import environment, others_cpu_seconds
from flashmore.measuring.result import schema

BURN = "import time\nwhile time.process_time() < 0.6: pass"


def test_every_field_that_the_schema_requires_is_there_and_no_other() -> None:
    fields = schema()["$defs"]["environment"]
    found = environment(torch.device("cpu"))
    assert set(found) == set(fields["required"])
    assert set(found) <= set(fields["properties"])
    assert found["threads"] == torch.get_num_threads()
    assert found["torch"] == torch.__version__
    assert found["device_name"] == found["cpu_name"] != ""


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="this system has no /proc/stat")
def test_what_another_process_used_is_told() -> None:
    first = others_cpu_seconds()
    subprocess.run([sys.executable, "-c", BURN], check=True)
    second = others_cpu_seconds()
    assert first is not None
    assert second is not None
    assert second - first >= 0.4
