"""``plugq schedules`` as it is typed, over a store that nobody else has open."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Shell


def listed(shop: Shell) -> dict[str, dict[str, Any]]:
    run = shop.run("schedules", "--json")
    assert (run.returncode, run.stderr) == (0, "")
    return {row["name"]: row for row in json.loads(run.stdout)}


def test_a_schedule_is_put_paused_resumed_triggered_and_removed(shop: Shell) -> None:
    put = shop.run("schedules", "put", "beat", "add", "-3", "b=4", "--every", "90s")
    assert (put.returncode, put.stdout) == (0, "beat\tput\n")
    beat = listed(shop)["beat"]
    assert (beat["task"], beat["rule"], beat["queue"]) == ("add", "every 90 s", "default")
    assert (beat["source"], beat["state"], len(beat["next"])) == ("runtime", "active", 1)

    assert shop.run("schedules", "pause", "beat").stdout == "beat\tpaused\n"
    assert listed(shop)["beat"]["state"] == "paused"
    assert listed(shop)["beat"]["next"] == []
    assert json.loads(shop.run("schedules", "resume", "beat", "--json").stdout) == {
        "beat": "resumed"
    }
    assert listed(shop)["beat"]["state"] == "active"

    id = shop.run("schedules", "trigger", "beat").stdout.strip()
    shown = json.loads(shop.run("jobs", "show", id, "--json").stdout)
    assert (shown["task"], shown["state"]) == ("add", "queued")

    again = shop.run(
        "schedules", "put", "beat", "add", "1", "--cron", "0 3 * * *",
        "--timezone", "Europe/Berlin", "--queue", "night", "--overlap", "allow",
        "--catch-up", "all",
    )  # fmt: skip
    assert again.returncode == 0
    beat = listed(shop)["beat"]
    assert (beat["rule"], beat["queue"]) == ("0 3 * * * Europe/Berlin", "night")
    assert (beat["overlap"], beat["catch_up"]) == ("allow", "all")

    assert shop.run("schedules", "remove", "beat").stdout == "beat\tremoved\n"
    assert listed(shop) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pause", "nothing"), "there is no schedule 'nothing'"),
        (("resume", "nothing"), "there is no schedule 'nothing'"),
        (("trigger", "nothing"), "there is no schedule 'nothing'"),
        (("remove", "nothing"), "there is no schedule 'nothing'"),
        (("put", "x", "hello", "you"), "either --cron or --every"),
        (("put", "x", "hello", "you", "--cron", "0 25 * * *"), "cron"),
        (("put", "x", "helo", "you", "--every", "1m"), "did you mean 'hello'?"),
        (("put", "x", "hello", "you", "--evry", "1m"), "--evry"),
        (("put", "x", "hello", "you", "--every", "1ms"), "interval"),
    ],
)
def test_what_can_not_be_is_said_in_a_line(
    shop: Shell, arguments: tuple[str, ...], message: str
) -> None:
    run = shop.run("schedules", *arguments)
    assert run.returncode in {1, 2}
    assert message in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("verb", ["pause", "resume", "remove", "trigger"])
def test_what_is_only_defined_is_said_to_be(shop: Shell, verb: str) -> None:
    with (shop.folder / "plugq.toml").open("a") as file:
        file.write('[schedules.nightly]\ntask = "hello"\nargs = ["you"]\ncron = "0 3 * * *"\n')
    run = shop.run("schedules", verb, "nightly")
    assert run.returncode == 1
    assert "'nightly' is defined, but no worker has announced it yet: start one" in run.stderr
    assert "there is no schedule 'other'" in shop.run("schedules", verb, "other").stderr


def test_a_schedule_is_put_with_a_lane(shop: Shell) -> None:
    assert shop.run("schedules", "put", "b", "add", "1", "--every", "1h", "--lane", "mine").stdout
    id = shop.run("schedules", "trigger", "b").stdout.strip()
    assert json.loads(shop.run("jobs", "show", id, "--json").stdout)["lane"] == "mine"
