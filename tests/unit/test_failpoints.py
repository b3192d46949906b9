"""Failpoints: what arms them, when they kill, and that they are off."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from plugq import failpoints
from plugq.errors import ConfigError


def test_nothing_is_armed_here() -> None:
    assert not failpoints.ARMED
    failpoints.hit("storage.commit.before")


def test_the_pass_that_was_asked_for_is_fatal() -> None:
    armed = failpoints.Armed("worker.granted@3, broker.claim.after")
    assert [armed.passes("worker.granted") for _ in range(4)] == [False, False, True, False]
    assert armed.passes("broker.claim.after")
    assert not armed.passes("broker.claim.before")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("worker.grated", "PLUGQ_FAILPOINTS: no failpoint 'worker.grated'; there are client"),
        ("worker.granted@0", "PLUGQ_FAILPOINTS: 'worker.granted@0' has to end with the number"),
        ("worker.granted@x", "PLUGQ_FAILPOINTS: 'worker.granted@x' has to end with the number"),
    ],
)
def test_what_can_not_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        failpoints.Armed(text)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_process_dies_and_says_where() -> None:
    code = "from plugq import failpoints as f; f.hit('worker.granted'); print('alive')"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, failpoints.VARIABLE: "worker.granted"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (-9, "")
    assert ended.stderr == "failpoint worker.granted\n"


def test_a_mistake_in_the_environment_is_one_line() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "import plugq.failpoints"],
        env={**os.environ, failpoints.VARIABLE: "worker.grated"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("plugq: PLUGQ_FAILPOINTS: no failpoint 'worker.grated'; ")
    assert ended.stderr.count("\n") == 1
