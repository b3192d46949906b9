"""What the answers of a server are taken for."""

from __future__ import annotations

import pytest
from redis.asyncio.connection import DefaultParser

from plugq.errors import OutcomeUnknown, Unavailable
from plugq_redis import _faults


def answer(text: str) -> Exception:
    """Return an answer as the library gives it."""
    error: Exception = DefaultParser.parse_error(text)  # type: ignore[no-untyped-call]
    return error


@pytest.mark.parametrize("code", [*_faults._REFUSALS, "NOSCRIPT"])
def test_every_code_is_known_again(code: str) -> None:
    """The library takes some of them off the text."""
    error = answer(f"{code} {'Authentication required.' if code == 'NOAUTH' else 'and why'}")
    assert _faults.code_of(error) == code


@pytest.mark.parametrize("code", ["CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "LOADING", "OOM"])
def test_a_script_that_was_not_begun_has_done_nothing(code: str) -> None:
    error = answer(f"{code} no")
    assert type(_faults.refusal(error, "here", script=True)) is Unavailable


def test_a_script_that_failed_may_have_done_a_part() -> None:
    error = answer("ERR user_script:7: attempt to index a nil value")
    assert type(_faults.refusal(error, "here", script=True)) is OutcomeUnknown


def test_where_a_key_has_moved() -> None:
    moved = answer("MOVED 1234 ::1:7000")
    assert _faults.moved_to(moved) == ("::1", 7000)
    asked = answer("ASK 1234 127.0.0.1:7000")
    assert _faults.moved_to(asked) is None
    assert _faults.is_moving(asked)
    assert not _faults.is_moving(moved)
