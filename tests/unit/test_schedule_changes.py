"""What becomes of a register: announced, put, paused, resumed, removed; and what is read of one."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from plugq.protocols import NewJob, Register, UniqueKey, UniqueMode
from plugq.schedule import Definition, Entry, Interval, Stored
from plugq.schedule.changes import announced, paused, put, removed, resumed
from plugq.schedule.stored import Pending, encode, key_of, read

JOB = NewJob(queue="q", id="x", task="t", submission=b"random", body=b"body")


def definition(**options: Any) -> Definition:
    wanted: dict[str, Any] = {
        "name": "s",
        "rule": Interval(60),
        "job": JOB,
        "source": "code",
        "digest": "1",
    }
    return Definition(**wanted | options)


def entry(**options: Any) -> Entry:
    return msgspec.structs.replace(definition().entry(owner="me", last=100.0), **options)


PENDING = Pending(queue="old", ticks=(60.0,), last=60.0, at=61.0, known=600.0)


def test_a_new_definition_counts_from_now() -> None:
    new = announced(None, definition(), "me", 500.0)
    assert new is not None
    assert (new.last, new.owner, new.source) == (500.0, "me", "code")
    assert (new.job.id, new.job.submission) == ("", b"")


@pytest.mark.parametrize(
    "state", [{}, {"paused": True}, {"removed": True}, {"source": "runtime", "every": 5.0}]
)
def test_the_same_definition_leaves_what_was_changed_at_run_time(state: dict[str, Any]) -> None:
    assert announced(entry(**state), definition(), "me", 500.0) is None


def test_the_same_definition_brings_inherited_options_up_to_date() -> None:
    job = msgspec.structs.replace(JOB, max_attempts=7)
    new = announced(entry(paused=True), definition(job=job), "me", 500.0)
    assert new is not None
    assert (new.job.max_attempts, new.paused, new.last) == (7, True, 100.0)
    put_at_run_time = entry(source="runtime")
    assert announced(put_at_run_time, definition(job=job), "me", 500.0) is None


def test_the_last_owner_of_the_same_definition_has_it() -> None:
    new = announced(entry(paused=True), definition(), "other", 500.0)
    assert new == entry(paused=True, owner="other")


@pytest.mark.parametrize(
    ("state", "changed", "last"),
    [
        ({}, {}, 100.0),
        ({}, {"rule": Interval(61)}, 500.0),
        ({"paused": True}, {}, 500.0),
        ({"removed": True}, {}, 500.0),
        ({"source": "runtime", "every": 5.0}, {}, 500.0),
    ],
)
def test_another_definition_replaces_everything_but_what_is_answered(
    state: dict[str, Any], changed: dict[str, Any], last: float
) -> None:
    held = entry(queue="q", id="s@1", pending=PENDING, **state)
    new = announced(held, definition(digest="2", **changed), "me", 500.0)
    assert new is not None
    assert (new.paused, new.removed, new.source, new.last) == (False, False, "code", last)
    assert (new.queue, new.id, new.pending) == ("q", "s@1", PENDING)


def test_a_definition_of_run_time_lasts_until_the_written_one_changes() -> None:
    new = put(entry(paused=True), definition(rule=Interval(5), source="runtime", digest=""), 500.0)
    assert (new.source, new.every, new.last, new.paused) == ("runtime", 5.0, 500.0, True)
    assert announced(new, definition(), "me", 600.0) is None
    back = announced(new, definition(digest="2"), "me", 600.0)
    assert back is not None
    assert (back.source, back.every, back.last) == ("code", 60.0, 600.0)


def test_what_was_removed_comes_back_by_a_put_and_counts_from_then() -> None:
    gone = removed(entry(paused=True))
    assert gone is not None
    new = put(gone, definition(), 500.0)
    assert (new.removed, new.paused, new.last) == (False, False, 500.0)


def test_of_a_schedule_of_run_time_nothing_stays() -> None:
    assert removed(entry(owner="", digest="")) is None


def test_ticks_while_it_is_paused_are_not_made_up_for() -> None:
    held = entry(pending=PENDING)
    assert resumed(held, 500.0) == held
    new = resumed(paused(held), 500.0)
    assert (new.paused, new.last, new.pending) == (False, 500.0, PENDING)


def test_what_is_written_is_read_again() -> None:
    held = entry(pending=PENDING, paused=True)
    stored = read(Register(key=key_of("a:b"), version=3, value=encode(held)))
    assert isinstance(stored, Stored)
    assert (stored.name, stored.version, stored.entry) == ("a:b", 3, held)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xc1",
        b"\x90" * 5000,
        encode(entry())[:-3],
        msgspec.msgpack.encode({"version": 1}),
        encode(entry(version=2)),
        encode(entry(every=1e-9)),
        encode(entry(every=math.nan)),
        encode(entry(every=None)),
        encode(entry(every=None, cron="0 25 * * *")),
        encode(entry(every=None, cron="0 3 * * *", timezone="../etc")),
        encode(entry(last=math.nan)),
        encode(entry(last=1e300)),
        encode(entry(last=-1e15)),
        *(
            encode(entry(job=msgspec.structs.replace(JOB, **{field: value})))
            for field in ("delay", "run_at", "deadline_in", "deadline_at", "result_ttl", "id_ttl")
            for value in (math.nan, math.inf, -math.inf)
        ),
        encode(
            entry(
                job=msgspec.structs.replace(
                    JOB, unique=UniqueKey(UniqueMode.THROTTLE, "k", math.inf)
                )
            )
        ),
        encode(entry(job=msgspec.structs.replace(JOB, queue=""))),
        encode(entry(job=msgspec.structs.replace(JOB, task="t" * 1000))),
        encode(entry(pending=msgspec.structs.replace(PENDING, ticks=()))),
        encode(entry(pending=msgspec.structs.replace(PENDING, ticks=(math.inf,)))),
        encode(entry(pending=msgspec.structs.replace(PENDING, known=math.inf))),
        encode(entry(overlap="never")),
    ],
)
def test_what_can_not_be_is_said_in_words_and_raises_nothing(value: bytes) -> None:
    reason = read(Register(key=key_of("s"), version=1, value=value))
    assert isinstance(reason, str)
    assert reason
    assert "\n" not in reason
