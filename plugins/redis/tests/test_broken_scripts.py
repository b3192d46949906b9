"""Scripts that break one promise each; the contract has to catch every one of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest

from plugq.protocols import PluginContext, Storage
from plugq.testing import StorageContract
from plugq_redis import RedisOptions, RedisStorage
from plugq_redis._scripts import Script, scripts


class Subject(StorageContract):
    patience: ClassVar[float] = 1.0

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        url = os.environ["PLUGQ_TEST_REDIS_URL"]
        storage = RedisStorage(RedisOptions(url=url), context)
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()


#: What is replaced by what, wherever it stands, and the test that fails then.
FAULTS = {
    "a settlement is not fenced": (
        "if not j or j.token ~= token or j.state ~= RUNNING then return 0 end",
        "if not j or j.state ~= RUNNING then return 0 end",
        "test_a_stale_token_is_refused_while_the_job_runs_elsewhere",
    ),
    "a renewal is not fenced": (
        "if not j or j.token ~= ref[3] or j.state ~= RUNNING then",
        "if not j or j.state ~= RUNNING then",
        "test_progress_of_a_stale_lease_is_refused",
    ),
    "tokens begin anew": (
        "local last = math.max(q.token, math.floor(now * 1000000) - 1)",
        "local last = 1",
        "test_tokens_rise_in_the_order_of_the_grants",
    ),
    "what runs of a lane is not counted": (
        "lane.running = lane.running + 1\n      lane.changed = true",
        "lane.changed = true",
        "test_jobs_of_a_lane_run_one_at_a_time",
    ),
    "a lane that is freed shows nothing": (
        "lane.running = lane.running - 1\n    balance(q, lane)",
        "lane.running = lane.running - 1",
        "test_a_freed_lane_wakes",
    ),
    "max_running is not looked at": (
        "return math.max(0, math.min(most, q.max_running - q.running))",
        "return most",
        "test_max_running_limits_a_queue",
    ),
    "a pause is not looked at": (
        "if q and not q.paused then\n        local left",
        "if q then\n        q.paused = false\n        local left",
        "test_a_paused_queue_grants_nothing",
    ),
    "the order is that of the sequence": (
        "return struct.pack('>dd', j.ready, j.seq) .. j.id",
        "return struct.pack('>dd', j.seq, j.seq) .. j.id",
        "test_an_earlier_ready_time_comes_first",
    ),
    "due jobs come in the order of their ids": (
        "return struct.pack('>d', j.seq) .. j.id",
        "return '        ' .. j.id:reverse() .. '\\0' .. j.id",
        "test_a_retry_storm_keeps_every_job_once",
    ),
    "a unique key is not looked at": (
        "  if new.mode then\n    local holder",
        "  if false then\n    local holder",
        "test_a_held_key_makes_a_duplicate_of_its_holder",
    ),
    "a refused call is stored": (
        "local answers = bounded and not mark and refusal() or nil",
        "local answers = nil",
        "test_a_full_queue_refuses_the_whole_call",
    ),
    "a repeated claim is a new one": (
        "if repeated then",
        "if false then",
        "test_a_repeated_claim_gives_the_same_leases",
    ),
    "a holder's silence says nothing": (
        "for _, j in ipairs(unlisted) do",
        "for _, j in ipairs({}) do",
        "test_a_holder_gives_back_what_it_never_received",
    ),
    "everybody is woken": (
        "if publish(peer, message) then most = most - 1 end",
        "publish(peer, message)",
        "test_n_jobs_wake_at_most_n_peers",
    ),
    "a peer that has gone takes a wake-up along": (
        "return call('PUBLISH', PEERS .. peer, message) > 0",
        "return call('PUBLISH', PEERS .. peer, message) >= 0",
        "test_a_peer_that_has_gone_is_not_woken_in_place_of_another",
    ),
    "time is not kept": (
        "now = math.max(now, latest, KNOWN)",
        "now = math.max(now, KNOWN)",
        "test_time_does_not_run_backwards",
    ),
    "a sweep ends no lease": (
        "if j and j.state == RUNNING then crash(q, j)",
        "if j and j.state == RUNNING then j = nil",
        "test_a_sweep_ends_leases_at_their_time_and_not_before",
    ),
    "a swap does not compare": (
        "if read_register(change[1]) ~= change[2] then done = 0 end",
        "",
        "test_a_swap_with_another_version_changes_nothing",
    ),
    "batches do not follow": (
        "batch[j.state] = batch[j.state] - 1\n",
        "",
        "test_counts_follow_a_job_through_its_life",
    ),
    "an outdated budget is used": (
        "if limit_state(q, lane) ~= budget.expect then found[lane] = nil end",
        "",
        "test_a_grant_serves_one_claim",
    ),
}


def broken(script: Script, old: str, new: str) -> Script:
    return Script(script.name, script.text.replace(old.encode(), new.encode()))


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, name = FAULTS[fault]
    known = scripts()
    assert any(old.encode() in script.text for script in known.values())
    await getattr(Subject(), name)()
    for key, script in known.items():
        monkeypatch.setitem(known, key, broken(script, old, new))
    with pytest.raises((AssertionError, ValueError, KeyError, IndexError)):
        async with asyncio.timeout(30):
            await getattr(Subject(), name)()
