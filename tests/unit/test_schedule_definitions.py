"""From what was written to what is announced: the digest, the owner, the job of a tick."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import plugq
from plugq.announcement import Announcer
from plugq.assembly import Assembly, owner_of
from plugq.assembly.schedules import definitions_of
from plugq.broker.announce import announce
from plugq.schedule import Definition, Interval, Stored, rule_text
from plugq.schedule.stored import PREFIX, name_of, read
from plugq.testing import ManualClock

SCRIPT = """
import plugq
from plugq.assembly import Assembly
from plugq.assembly.schedules import definitions_of

app = plugq.App()
request = plugq.job("t", "a", x={"k": [1, 2.5, None], "a": {}}).options(
    queue="q", retry=plugq.RetryPolicy(retry_on=(ValueError, "OSError")), headers={"a": "1"},
    unique=plugq.Unique.until_finished(), delay="5s",
)
app.schedule("s", request, every="90s")
(one,) = definitions_of(Assembly({}), app)
print(one.digest)
"""


def definition(config: dict[str, Any] | None = None, **options: Any) -> Definition:
    app = plugq.App()
    request = plugq.job("t", *options.pop("args", (1,))).options(**options.pop("asked", {}))
    app.schedule(options.pop("name", "s"), request, **{"every": 60} | options)
    (one,) = definitions_of(Assembly(config or {}), app)
    return one


def test_the_digest_is_the_same_in_every_process() -> None:
    digests = set()
    for seed in ("1", "2", "3"):
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        digests.add(run.stdout.strip())
    assert len(digests) == 1
    assert len(digests.pop()) == 64


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "other"},
        {"args": (2,)},
        {"every": 61},
        {"every": None, "cron": "* * * * *"},
        {"catch_up": "all"},
        {"overlap": "allow"},
        {"asked": {"queue": "other"}},
        {"asked": {"priority": 1}},
        {"asked": {"unique": plugq.Unique.until_finished("k")}},
        {"asked": {"batch": "b"}},
    ],
)
def test_whatever_was_written_counts(changed: dict[str, Any]) -> None:
    assert definition(**changed).digest != definition().digest


def test_intervals_differ_by_a_second_in_a_month() -> None:
    rules = [Interval(every) for every in ("30d", "29d23h59m59s", "30d2s", "2592000.5s")]
    assert [rule_text(rule) for rule in rules] == [
        f"every {seconds} s" for seconds in ("2592000", "2591999", "2592002", "2592000.5")
    ]
    assert len({definition(every=rule.every).digest for rule in rules}) == len(rules)


def test_what_is_inherited_reaches_the_job_and_not_the_digest() -> None:
    plain = definition()
    inherits = definition({"defaults": {"priority": 7}})
    assert (inherits.job.priority, plain.job.priority) == (7, 0)
    assert inherits.digest == plain.digest


def test_a_task_by_name_has_the_options_of_its_code() -> None:
    app = plugq.App()

    @app.task("rep", queue="reports", max_attempts=7, lane=lambda number: f"t{number}")
    def rep(number: int) -> None: ...

    app.schedule("name", plugq.job("rep", 1), every=60)
    app.schedule("task", rep.job(1), every=60)
    by_name, by_task = definitions_of(Assembly({}), app)
    for one in (by_name, by_task):
        assert (one.job.queue, one.job.lane, one.job.max_attempts) == ("reports", "t1", 7)


@pytest.mark.parametrize(
    ("computed", "options", "place"),
    [
        (False, {}, ("reports", None)),
        (True, {"lane": "mine"}, ("reports", "mine")),
        (True, {}, None),
    ],
)
async def test_a_task_of_another_process_has_the_options_that_are_announced(
    *,
    computed: bool,
    options: dict[str, Any],
    place: tuple[str, str | None] | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    theirs = plugq.App()
    lane = {"lane": lambda number: f"t{number}"} if computed else {}
    theirs.task("rep", queue="reports", **lane)(lambda number: None)  # type: ignore[call-overload]
    assembly = Assembly(
        {"schedules": {"s": {"task": "rep", "args": [1], "every": 60, "options": options}}},
        clock=ManualClock(),
    )
    store = assembly.storage()
    await store.start()
    await Announcer(store, assembly.clock, theirs.tasks).round()
    app = plugq.App()
    app.schedule("other", plugq.job("t"), every=60)
    await announce(store, definitions_of(assembly, app), "me")
    found = {}
    for register in await store.scan(PREFIX):
        stored = read(register)
        assert isinstance(stored, Stored)
        found[stored.name] = (stored.entry.job.queue, stored.entry.job.lane)
    expected = {} if place is None else {"s": place}
    assert found == {"other": ("default", None)} | expected
    assert ("lane: task 'rep'" in caplog.text) is (place is None)
    await store.stop()


@pytest.mark.parametrize(("schedules", "left"), [(None, ["s"]), ((), [])])
async def test_only_a_broker_that_knows_all_definitions_removes_what_is_not_among_them(
    schedules: tuple[Definition, ...] | None, left: list[str]
) -> None:
    clock = ManualClock()
    assembly = Assembly({}, clock=clock)
    store = assembly.storage()
    await store.start()
    await announce(store, [definition()], owner_of(assembly.config))
    broker = assembly.broker(maintain=True, schedules=schedules)
    await broker.start()
    try:
        for _ in range(200):
            await asyncio.sleep(0)
            clock.advance(0.01)
        assert [name_of(register.key) for register in await store.scan(PREFIX)] == left
    finally:
        await broker.stop()
        await store.stop()


def test_the_owner_is_the_application_else_the_file_else_the_script(tmp_path: Path) -> None:
    file = tmp_path / "plugq.toml"
    file.write_text('app = "shop.jobs"\n')
    assert owner_of(Assembly(str(file)).config) == "shop.jobs"
    file.write_text("")
    assert owner_of(Assembly(str(file)).config) == str(file.resolve())
    script = tmp_path / "script.py"
    script.write_text(
        "from plugq.assembly import Assembly, owner_of\nprint(owner_of(Assembly({}).config))\n"
    )
    run = subprocess.run(
        [sys.executable, str(script)], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert run.stdout.strip() == str(script.resolve())


@pytest.mark.parametrize("word", [{"catch_up": "latest"}, {"overlap": "never"}, {"catch_up": []}])
def test_an_unknown_word_is_refused_where_it_is_written(word: dict[str, Any]) -> None:
    app = plugq.App()
    with pytest.raises(plugq.ConfigError, match=rf"'s': {next(iter(word))}: expected 'skip' or "):
        app.schedule("s", plugq.job("t"), every=60, **word)
    assert not app.schedules
