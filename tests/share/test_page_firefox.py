"""The page in Firefox, spoken to by its own remote protocol, Marionette: the page checks itself there too."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flashmore.runs import Run
from flashmore.share.page import page

FIREFOX = next(filter(None, map(shutil.which, ("firefox", "firefox-esr"))), None)
SECONDS = 120

pytestmark = [pytest.mark.long, pytest.mark.skipif(FIREFOX is None, reason="needs Firefox, which is missing")]


class Firefox:
    """A connection; https://firefox-source-docs.mozilla.org/testing/marionette/Protocol.html."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
        self.stream = self.socket.makefile("rwb")
        self.receive()
        self.ask("WebDriver:NewSession")

    def receive(self) -> Any:
        """One message: its length in decimal digits, a colon, and JSON."""
        digits = b""
        while (byte := self.stream.read(1)) != b":":
            digits += byte
        return json.loads(self.stream.read(int(digits)))

    def ask(self, command: str, **parameters: Any) -> Any:
        message = json.dumps([0, 1, command, parameters]).encode()
        self.stream.write(b"%d:%b" % (len(message), message))
        self.stream.flush()
        _, _, error, result = self.receive()
        assert error is None, error
        return result

    def run(self, script: str) -> Any:
        return self.ask("WebDriver:ExecuteScript", script=f"return {script}", args=[])["value"]

    def close(self) -> None:
        self.stream.close()
        self.socket.close()


@pytest.fixture
def firefox(tmp_path: Path) -> Iterator[Firefox]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    profile = tmp_path / "profile"
    profile.mkdir()
    (profile / "user.js").write_text(f'user_pref("marionette.port", {port});\n', encoding="utf-8")
    command = [FIREFOX or "", "--marionette", "--headless", "--no-remote", "--profile", str(profile)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(SECONDS):
                try:
                    connection = Firefox(port)
                    break
                except ConnectionError:
                    time.sleep(1)
            yield connection
            connection.close()
        finally:
            process.terminate()


def test_the_page_checks_itself_in_firefox(firefox: Firefox, trained: dict[str, Run], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page([trained["transformer"], trained["bigram"]]), encoding="utf-8")
    firefox.ask("WebDriver:Navigate", url=path.as_uri())
    for _ in range(SECONDS):
        if checked := firefox.run("document.documentElement.dataset.checked"):
            break
        time.sleep(1)
    assert checked == "yes"
    assert firefox.run("document.querySelectorAll('#made .name').length") == 40
    assert "40 of 40 names" in firefox.run("document.getElementById('checked').textContent")
