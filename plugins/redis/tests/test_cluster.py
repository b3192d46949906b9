"""What is particular to a cluster: where queues lie, nodes that go, slots that move."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from redis.crc import key_slot

import plugq
from plugq.assembly import Assembly
from plugq.broker.local import LocalBroker
from plugq.clock import SystemClock
from plugq.errors import InvalidJob, OutcomeUnknown, Unavailable
from plugq.job import JobRef, JobState, Outcome
from plugq.protocols import (
    Cancel,
    ClaimRequest,
    Drain,
    Holder,
    LeaseRef,
    NewJob,
    PluginContext,
    QueueSettings,
    RenewReply,
    Resync,
    Settlement,
    SubmitStatus,
    SweepRequest,
    Wake,
)
from plugq.testing import ManualClock
from plugq_redis import RedisOptions, RedisStorage, _hub, _index, _submit
from plugq_redis._nodes import SlotMap
from plugq_redis._records import flat
from plugq_redis._spread import Spread

OpenStore = Callable[..., AbstractAsyncContextManager[RedisStorage]]
NewJobs = Callable[..., NewJob]
Claim = Callable[..., ClaimRequest]

PATIENCE = 30.0
SLOTS, NODES = 16_384, 3


def node_of(key: str) -> int:
    return next(
        node for node in range(NODES) if key_slot(key.encode()) < SLOTS * (node + 1) // NODES
    )


def queue_on(node: int, prefix: str = "plugq:", namespace: str = "n") -> str:
    """Return the name of a queue whose keys lie on that node."""
    return next(
        f"q{number}"
        for number in range(1_000)
        if node_of(f"{prefix}{{{namespace}/q{number}}}:clock") == node
    )


def namespace_on(node: int) -> str:
    """Return a namespace of which what belongs to no queue lies on that node."""
    return next(
        f"n{number}" for number in range(1_000) if node_of(f"plugq:{{n{number}}}:clock") == node
    )


async def until(call: Callable[[], Any]) -> Any:
    """Return what a call returns once it works."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(Unavailable, OutcomeUnknown):
                return await call()
            await asyncio.sleep(0.02)


async def test_all_keys_of_a_queue_lie_on_one_node(
    own_cluster: Any, open_store: OpenStore, new_job: NewJobs, claim: Claim, succeed: Any
) -> None:
    async with open_store(own_cluster.url, namespace="n") as storage:
        queues = [queue_on(node) for node in range(NODES)]
        jobs = [new_job(queue=queue, lane="l", batch="b") for queue in queues]
        await storage.submit(jobs)
        leases = (await storage.claim(claim(10, queues=tuple(queues)))).leases
        assert [lease.queue for lease in leases] == queues
        await storage.settle(succeed(leases))
    for number, node in enumerate(own_cluster.nodes):
        keys = {key.decode() for key in node.command("KEYS", "*")}
        owners = {key.split("}")[0] for key in keys if "/" in key}
        assert owners == {f"plugq:{{n/{queues[number]}"}


async def test_a_node_that_is_down_stops_no_queue_of_the_others(
    own_cluster: Any, open_store: OpenStore, new_job: NewJobs, claim: Claim
) -> None:
    for node in own_cluster.nodes:
        node.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
    namespace = namespace_on(0)
    up, down = queue_on(1, namespace=namespace), queue_on(2, namespace=namespace)
    async with open_store(own_cluster.url, namespace=namespace) as storage:
        for queue in (up, down):
            await storage.submit([new_job("a", queue=queue)])
        own_cluster.nodes[2].stop()
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await storage.submit([new_job("b", queue=down)])
        with pytest.raises(Unavailable):
            await storage.submit([new_job("b", queue=down)])
        await storage.submit([new_job("b", queue=up)])
        leases = (await storage.claim(claim(5, queues=(down, up)))).leases
        assert [(lease.queue, lease.id) for lease in leases] == [(up, "a"), (up, "b")]
        await storage.sweep(SweepRequest())
        with pytest.raises(Unavailable):
            await storage.claim(claim(5, queues=(down,)))
        own_cluster.nodes[2].start()
        await until(lambda: storage.submit([new_job("c", queue=down)]))


@contextlib.asynccontextmanager
async def two_queues(cluster: Any, open_store: OpenStore) -> Any:
    """A storage, a queue of a node that stays, and one of a node that may be stopped."""
    for node in cluster.nodes:
        node.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
    namespace = namespace_on(0)
    async with open_store(cluster.url, namespace=namespace) as storage:
        yield storage, queue_on(1, namespace=namespace), queue_on(2, namespace=namespace)


async def test_a_settlement_that_was_half_done_is_done_by_its_repetition(
    own_cluster: Any, open_store: OpenStore, new_job: NewJobs, claim: Claim, succeed: Any
) -> None:
    """What was done before is done no second time."""
    async with two_queues(own_cluster, open_store) as (storage, up, lost):
        await storage.submit([new_job("a", queue=up), new_job("b", queue=lost)])
        settlements = succeed((await storage.claim(claim(2, queues=(up, lost)))).leases)
        own_cluster.nodes[2].stop()
        with pytest.raises(OutcomeUnknown, match="again is safe"):
            await storage.settle(settlements)
        (first,) = await storage.get([JobRef(up, "a")])
        assert first is not None
        assert (first.state, first.result) == (JobState.SUCCEEDED, b"null")
        own_cluster.nodes[2].start()
        replies, _ = await until(lambda: storage.settle(settlements))
        assert [reply.state for reply in replies] == [JobState.SUCCEEDED] * 2
        # Whoever has the answer and asks again gets the usual one.
        replies, _ = await storage.settle(settlements)
        assert [reply.lost for reply in replies] == [True, True]
        found = await storage.get([JobRef(up, "a"), JobRef(lost, "b")])
        assert [job and (job.state, job.result) for job in found] == [
            (JobState.SUCCEEDED, b"null"),
            (JobState.SUCCEEDED, b"null"),
        ]
        totals = [stats.totals for stats in (await storage.stats()).tasks]
        assert [(each["started"], each["succeeded"]) for each in totals] == [(1, 1), (1, 1)]


async def test_renewals_and_edits_that_were_half_done_can_be_repeated(
    own_cluster: Any, open_store: OpenStore, new_job: NewJobs, claim: Claim
) -> None:
    async with two_queues(own_cluster, open_store) as (storage, up, lost):
        for id in ("a", "b"):
            await storage.submit([new_job(id, queue=up), new_job(id, queue=lost)])
        leases = (await storage.claim(claim(1, queues=(up,)))).leases
        leases += (await storage.claim(claim(1, queues=(lost,)))).leases
        held = [LeaseRef(lease.queue, lease.id, lease.token) for lease in leases]
        waiting = (JobRef(up, "b"), JobRef(lost, "b"))
        own_cluster.nodes[2].stop()
        with pytest.raises(OutcomeUnknown):
            await storage.renew(held, lease=60.0)
        with pytest.raises(OutcomeUnknown):
            await storage.edit(Cancel(waiting))
        own_cluster.nodes[2].start()
        assert await until(lambda: storage.renew(held, lease=60.0)) == [RenewReply.OK] * 2
        replies = await until(lambda: storage.edit(Cancel(waiting)))
        assert [reply.state for reply in replies] == [JobState.CANCELLED] * 2


async def test_a_node_that_is_down_keeps_no_outcome_of_the_others_back(
    own_cluster: Any, open_store: OpenStore, new_job: NewJobs, claim: Claim, succeed: Any
) -> None:
    """Nor is its queue forgotten: who finds nothing in the others looks again soon."""
    async with two_queues(own_cluster, open_store) as (storage, up, lost):
        await storage.submit([new_job("a", queue=up)])
        await storage.submit([new_job("b", queue=lost)])
        leases = (await storage.claim(claim(1, queues=(up,)))).leases
        own_cluster.nodes[2].stop()
        replies, reply = await storage.settle(succeed(leases), claim(5, queues=(up, lost)))
        assert [each.state for each in replies] == [JobState.SUCCEEDED]
        for found in (reply, await storage.claim(claim(5, queues=(up, lost)))):
            assert (found.leases, found.next_in) == ((), 1.0)
        own_cluster.nodes[2].start()
        leases = (await until(lambda: storage.claim(claim(5, queues=(up, lost))))).leases
        assert [lease.id for lease in leases] in ([], ["b"])


async def test_a_worker_of_two_queues_outlives_the_node_of_one(
    own_cluster: Any,
) -> None:
    """Its jobs end once each, those of the other queue while the node is down."""
    for node in own_cluster.nodes:
        node.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
    namespace = namespace_on(0)
    up, lost = (queue_on(number, namespace=namespace) for number in (1, 2))
    app, runs = plugq.App(), dict.fromkeys((up, lost), 0)
    gate = threading.Event()

    @app.task("gated")
    def gated(queue: str) -> str:
        runs[queue] += 1
        assert gate.wait(PATIENCE)
        return queue

    config = {
        "namespace": namespace,
        "storage": {"use": "redis", "url": own_cluster.url, "timeout": 1.0},
        "worker": {"queues": [up, lost]},
    }
    assembly = Assembly(config)
    async with assembly.client() as client, plugq.Worker(app, assembly=assembly):
        handles = [
            await client.submit(gated.job(queue).options(queue=queue)) for queue in (up, lost)
        ]
        async with asyncio.timeout(PATIENCE):
            while set(runs.values()) != {1}:
                await asyncio.sleep(0.01)
        own_cluster.nodes[2].stop()
        gate.set()
        assert await handles[0].result(PATIENCE) == up
        own_cluster.nodes[2].start()
        assert await handles[1].result(PATIENCE) == lost
        assert runs == {up: 1, lost: 1}


async def test_a_slot_that_has_moved_is_found(
    own_cluster: Any, open_store: OpenStore, new_job: NewJobs, claim: Claim
) -> None:
    """The node that had it says where it is now; nothing is done twice."""
    queue = queue_on(0)
    slot = key_slot(f"plugq:{{n/{queue}}}:clock".encode())
    async with open_store(own_cluster.url, namespace="n") as storage:
        await storage.submit([new_job("a", queue=queue)])
        own_cluster.move(slot, source=0, target=1)
        await storage.submit([new_job("b", queue=queue)])
        leases = (await storage.claim(claim(5, queues=(queue,)))).leases
        assert [lease.id for lease in leases] == ["a", "b"]


async def test_a_refusal_of_one_queue_stores_nothing_in_the_others(
    own_cluster: Any, open_store: OpenStore, new_job: NewJobs
) -> None:
    async with open_store(own_cluster.url, namespace="n") as storage:
        first, second = queue_on(0), queue_on(1)
        await storage.edit(Drain((second,)))
        replies = await storage.submit([new_job("a", queue=first), new_job("b", queue=second)])
        assert [reply.status for reply in replies] == [
            SubmitStatus.REFUSED,
            SubmitStatus.DRAINING,
        ]
        assert await storage.get([JobRef(first, "a"), JobRef(second, "b")]) == [None, None]


@contextlib.asynccontextmanager
async def manual(cluster: Any) -> Any:
    """A storage with a manual clock, and two queues on different nodes."""
    clock = ManualClock()
    context = PluginContext(namespace="n", clock=clock)
    storage = RedisStorage(RedisOptions(url=cluster.url), context)
    await storage.start()
    verbs = storage._verbs
    assert isinstance(verbs, Spread)
    try:
        await verbs._make_known((queue_on(0), queue_on(1)))
        yield storage, verbs, clock
    finally:
        await storage.stop()


async def test_what_a_process_has_left_undone_a_sweep_does(
    own_cluster: Any, new_job: NewJobs
) -> None:
    """All of a call that was decided is stored, once, whoever died in the midst of it."""
    async with manual(own_cluster) as (storage, verbs, clock):
        first, second = queue_on(0), queue_on(1)
        jobs = [new_job("a", queue=first), new_job("b", queue=second, id_ttl=0.0, result_ttl=0.0)]
        mark = await verbs._intents.keep(jobs, [1, 2])
        # It gets as far as the second queue, where the job even comes to its end and goes.
        await _submit.submit(verbs._at(second), jobs[1:], [2], mark=mark)
        request = ClaimRequest(worker="w", number=1, queues=(second,), limit=1)
        (lease,) = (await storage.claim(request)).leases
        ended = Settlement(queue=second, id="b", token=lease.token, outcome=Outcome.SUCCEED)
        await storage.settle([ended])
        assert await storage.get([JobRef(first, "a")]) == [None]
        clock.advance(60)
        for _ in range(2):
            await storage.sweep(SweepRequest())
            found = await storage.get([JobRef(first, "a"), JobRef(second, "b")])
            assert [job and job.id for job in found] == ["a", None]
        assert await verbs._intents.left() == {}
        totals = {stats.queue: stats.totals for stats in (await storage.stats()).tasks}
        assert (totals[first]["accepted"], totals[second]["accepted"]) == (1, 1)


async def test_a_part_is_not_done_again_while_another_can_not_be_done(
    own_cluster: Any, new_job: NewJobs, succeed: Any
) -> None:
    """For days; nor does such a call stop others."""
    async with manual(own_cluster) as (storage, verbs, clock):
        first, second = queue_on(0), queue_on(1)
        fields = {"id_ttl": 0.0, "result_ttl": 0.0}
        jobs = [new_job("a", queue=first, **fields), new_job("b", queue=second)]
        await verbs._intents.keep(jobs, [1, 2])
        clock.advance(60)
        own_cluster.nodes[1].command("CONFIG", "SET", "maxmemory", "1")
        runs = 0
        for day in range(4):
            await storage.sweep(SweepRequest())
            request = ClaimRequest(worker="w", number=day + 1, queues=(first,), limit=9)
            leases = (await storage.claim(request)).leases
            runs += sum(lease.id == "a" for lease in leases)
            await storage.settle(succeed(leases))
            # A process has died in the midst of another call, and one can not be read any more.
            await verbs._intents.keep([new_job(f"c{day}", queue=first)], [10 + day])
            await verbs._common.run("intend", flat("keep", f"odd{day}"), b"?")
            clock.advance(86_400 + 60)
        await storage.sweep(SweepRequest())
        assert runs == 1
        refs = [JobRef(first, f"c{day}") for day in range(4)]
        assert None not in await storage.get(refs[3:])
        own_cluster.nodes[1].command("CONFIG", "SET", "maxmemory", "0")
        clock.advance(60)
        await storage.sweep(SweepRequest())
        assert None not in await storage.get([JobRef(second, "b")])
        totals = {stats.queue: stats.totals for stats in (await storage.stats()).tasks}
        assert (totals[first]["accepted"], totals[second]["accepted"]) == (5, 1)


async def test_a_call_that_another_process_has_done_is_answered(
    own_cluster: Any, new_job: NewJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own process was away for so long that a sweep did it."""
    async with manual(own_cluster) as (storage, verbs, clock):
        keep = verbs._intents.keep

        async def slow(jobs: Any, sequences: Any) -> str:
            mark: str = await keep(jobs, sequences)
            clock.advance(60)
            await storage.sweep(SweepRequest())
            return mark

        monkeypatch.setattr(verbs._intents, "keep", slow)
        jobs = [new_job("a", queue=queue_on(0)), new_job("b", queue=queue_on(1))]
        replies = await storage.submit(jobs)
        assert [(reply.id, reply.status) for reply in replies] == [
            ("a", SubmitStatus.ACCEPTED),
            ("b", SubmitStatus.ACCEPTED),
        ]


async def test_a_queue_that_the_common_node_has_forgotten_is_named_again(
    own_cluster: Any, open_store: OpenStore, new_job: NewJobs
) -> None:
    async with open_store(own_cluster.url, namespace=namespace_on(0)) as storage:
        queue = queue_on(1, namespace=namespace_on(0))
        await storage.submit([new_job("a", queue=queue)])
        own_cluster.nodes[0].command("DEL", f"plugq:{{{namespace_on(0)}}}:queues")
        await storage.sweep(SweepRequest())
        async with open_store(own_cluster.url, namespace=namespace_on(0)) as other:
            assert [stats.queue for stats in (await other.stats()).queues] == [queue]


async def test_leases_are_renewed_while_the_common_node_is_down(
    own_cluster: Any, open_store: OpenStore, new_job: NewJobs, claim: Claim, succeed: Any
) -> None:
    """And jobs end, whether it is dead or hangs."""
    async with two_queues(own_cluster, open_store) as (storage, queue, _):
        await storage.submit([new_job("a", queue=queue), new_job("b", queue=queue)])
        leases = (await storage.claim(claim(2, queues=(queue,)))).leases
        held = [LeaseRef(lease.queue, lease.id, lease.token) for lease in leases]
        os.kill(own_cluster.nodes[0].pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            replies, _ = await storage.settle(succeed(leases[:1]))
            assert time.monotonic() - began < storage._nodes._timeout
            assert [reply.state for reply in replies] == [JobState.SUCCEEDED]
        finally:
            os.kill(own_cluster.nodes[0].pid, signal.SIGCONT)
        own_cluster.nodes[0].stop()
        assert await storage.renew(held[1:], lease=60.0, holder=Holder("w", 1)) == [RenewReply.OK]


async def test_who_listens_while_a_change_is_under_way_hears_of_it(
    own_cluster: Any, open_store: OpenStore, new_job: NewJobs, claim: Claim, succeed: Any
) -> None:
    """Who began to listen before the change was stored."""
    async with two_queues(own_cluster, open_store) as (storage, queue, _):
        await storage.submit([new_job("a", queue=queue)])
        leases = (await storage.claim(claim(1, queues=(queue,)))).leases
        os.kill(own_cluster.nodes[1].pid, signal.SIGSTOP)
        settling = asyncio.create_task(storage.settle(succeed(leases)))
        await asyncio.sleep(0)
        try:
            listening = storage.listen()
            await anext(listening)
        finally:
            os.kill(own_cluster.nodes[1].pid, signal.SIGCONT)
        await settling
        assert storage.listened
        await listening.aclose()


async def test_signals_follow_the_slot_that_they_belong_to(
    own_cluster: Any, open_store: OpenStore, new_job: NewJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node that they came from stays; it does not count who listens there any more."""
    monkeypatch.setattr(_hub, "_BEAT", 0.1)
    namespace = namespace_on(0)
    async with open_store(own_cluster.url, namespace=namespace) as storage:
        queue = queue_on(1, namespace=namespace)
        listening = storage.listen()
        assert await anext(listening) == Resync()
        slot = key_slot(f"plugq:{{{namespace}}}:clock".encode())
        own_cluster.move(slot, source=0, target=2)
        # It makes no calls by which it would learn of that.
        async with asyncio.timeout(PATIENCE):
            assert await anext(listening) == Resync()
        await storage.submit([new_job("a", queue=queue)])
        await storage.submit([new_job("b", queue=queue)])
        assert storage.listened
        await listening.aclose()


async def test_a_name_is_not_asked_of_a_node_that_is_full(
    own_cluster: Any, open_store: OpenStore, new_job: NewJobs, claim: Claim
) -> None:
    """A new process can work on the queues that there are."""
    async with two_queues(own_cluster, open_store) as (storage, queue, _):
        await storage.submit([new_job("a", queue=queue)])
        own_cluster.nodes[0].command("CONFIG", "SET", "maxmemory", "1")
        async with open_store(own_cluster.url, namespace=namespace_on(0)) as other:
            assert len((await other.claim(claim(1, queues=(queue,)))).leases) == 1


@pytest.mark.parametrize("named", [None, b"", b"?"])
def test_a_node_that_does_not_say_its_host_has_that_of_the_one_that_was_asked(
    named: bytes | None,
) -> None:
    known = SlotMap([[0, SLOTS - 1, [named, 7000, b"id"]]], "asked")
    assert known.node(5) == ("asked", 7000)


async def test_no_line_is_left_that_was_given_up(own_cluster: Any, open_store: OpenStore) -> None:
    """Although the storage stops while it is being closed."""
    async with open_store(own_cluster.url, namespace="n") as storage:
        nodes = storage._nodes
        await storage.submit([])
        line = nodes._line(("127.0.0.1", own_cluster.nodes[2].port))
        os.kill(own_cluster.nodes[2].pid, signal.SIGSTOP)
        try:
            asking = asyncio.create_task(line.call("PING", writes=False))
            await asyncio.sleep(0)
            known = [[0, SLOTS - 1, [b"127.0.0.1", own_cluster.nodes[0].port, b"id"]]]
            nodes._map = SlotMap(known, "")
            nodes._asking = asyncio.create_task(nodes._let_go())
            await asyncio.sleep(0)
        finally:
            os.kill(own_cluster.nodes[2].pid, signal.SIGCONT)
    await asyncio.gather(asking, return_exceptions=True)
    assert not [task for task in asyncio.all_tasks() if "plugq-redis" in task.get_name()]


async def test_who_only_listens_finds_the_node_that_took_over(
    own_cluster: Any, open_store: OpenStore
) -> None:
    """It makes no calls by which it would learn of that."""
    namespace = namespace_on(0)
    async with open_store(own_cluster.url, namespace=namespace) as storage:
        listening = storage.listen()
        assert await anext(listening) == Resync()
        slot = key_slot(f"plugq:{{{namespace}}}:clock".encode())
        own_cluster.move(slot, source=0, target=2)
        own_cluster.nodes[0].stop()
        async with asyncio.timeout(PATIENCE):
            assert await anext(listening) == Resync()
        await listening.aclose()


async def test_a_queue_has_a_name(
    own_cluster: Any, open_store: OpenStore, new_job: NewJobs
) -> None:
    async with open_store(own_cluster.url) as storage:
        with pytest.raises(InvalidJob, match="queue: give a name"):
            await storage.submit([new_job(queue="")])
        assert (await storage.stats()).queues == ()


async def test_calls_wait_side_by_side_for_a_node_that_hangs(
    own_cluster: Any, open_store: OpenStore, new_job: NewJobs
) -> None:
    """No process of theirs has spoken with it before."""
    namespace = namespace_on(0)
    queue = queue_on(2, namespace=namespace)
    options = {"timeout": 1.0, "connect_timeout": 4.0}
    async with open_store(own_cluster.url, namespace=namespace, **options) as storage:
        os.kill(own_cluster.nodes[2].pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            calls = [storage.submit([new_job(queue=queue)]) for _ in range(20)]
            errors = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(error) for error in errors} == {Unavailable}
            assert time.monotonic() - began < 20 * options["timeout"]
        finally:
            os.kill(own_cluster.nodes[2].pid, signal.SIGCONT)


@contextlib.contextmanager
def hanging(node: Any) -> Iterator[None]:
    """Let a node do nothing and keep its connections."""
    os.kill(node.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(node.pid, signal.SIGCONT)


async def test_a_node_that_hangs_holds_up_no_queue_of_the_others(
    own_cluster: Any, open_store: OpenStore, new_job: NewJobs, claim: Claim
) -> None:
    """Nor what is decided and can not be done there."""
    namespace = namespace_on(0)
    up, lost = (queue_on(node, namespace=namespace) for node in (1, 2))
    async with open_store(own_cluster.url, namespace=namespace, timeout=PATIENCE) as storage:
        await storage.submit([new_job("a", queue=up), new_job("a", queue=lost)])
        (lease,) = (await storage.claim(claim(1, queues=(up,)))).leases
        verbs = storage._verbs
        assert isinstance(verbs, Spread)
        await verbs._intents.keep([new_job("b", queue=up), new_job("b", queue=lost)], [1, 2])
        key = f"plugq:{{{namespace}}}:intents:since"
        (mark,) = own_cluster.nodes[0].command("ZRANGE", key, 0, 0)
        own_cluster.nodes[0].command("ZADD", key, 1, mark)
        with hanging(own_cluster.nodes[2]):
            began = time.monotonic()
            await storage.submit([new_job("c", queue=up, delay=0.001)])
            await storage.sweep(SweepRequest())
            ref = LeaseRef(up, "a", lease.token)
            assert await storage.renew([ref], lease=60.0, holder=Holder("w", 1)) == [RenewReply.OK]
            granted = await storage.claim(claim(9, queues=(lost, up)))
            assert time.monotonic() - began < PATIENCE
            assert {lease.id for lease in granted.leases} == {"b", "c"}
            assert granted.next_in is not None
        ids: set[str] = set()
        async with asyncio.timeout(PATIENCE):
            while ids != {"a", "b"}:
                leases = (await storage.claim(claim(9, queues=(lost, up)))).leases
                ids |= {lease.id for lease in leases}
                await asyncio.sleep(0.02)


async def test_a_repeated_claim_tells_when_to_come_again_for_all_queues(
    own_cluster: Any, new_job: NewJobs
) -> None:
    async with manual(own_cluster) as (storage, _, _):
        first, second = queue_on(0), queue_on(1)
        await storage.submit([new_job("a", queue=first)])
        await storage.submit([new_job("b", queue=second, delay=1.0)])
        request = ClaimRequest(worker="w", number=1, queues=(first, second), limit=9)
        reply = await storage.claim(request)
        again = await storage.claim(request)
        for each in (reply, again):
            assert ([lease.id for lease in each.leases], each.next_in) == (["a"], 1.0)


async def test_a_part_stays_marked_until_the_call_is_forgotten(
    own_cluster: Any, new_job: NewJobs, succeed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be done again, once the job has gone."""
    async with manual(own_cluster) as (storage, verbs, clock):
        first, second = queue_on(0), queue_on(1)
        fields = {"id_ttl": 0.0, "result_ttl": 0.0}
        with monkeypatch.context() as patch:

            async def fail(mark: str) -> bool:
                del mark
                return False

            patch.setattr(verbs._intents, "drop", fail)
            jobs = [new_job("a", queue=first, **fields), new_job("b", queue=second)]
            await storage.submit(jobs)
        request = ClaimRequest(worker="w", number=1, queues=(first,), limit=9)
        await storage.settle(succeed((await storage.claim(request)).leases))
        # The common node is out of reach for a while, and back in the midst of a sweep.
        clock.advance(86_400)
        for queue in (first, second):
            await _index.sweep(verbs._at(queue), SweepRequest(), [9] * 5)
        await storage.sweep(SweepRequest())
        assert await verbs._intents.left() == {}
        assert await storage.get([JobRef(first, "a")]) == [None]


async def test_a_broker_serves_the_queues_that_can_be_reached(
    own_cluster: Any, open_store: OpenStore, new_job: NewJobs
) -> None:
    """It starts, and calls that name one queue have nothing to do with those that name another."""
    async with two_queues(own_cluster, open_store) as (storage, up, lost):
        await storage.submit([new_job(queue=up)])
        await storage.submit([new_job(queue=lost)])
    own_cluster.nodes[2].stop()
    namespace = namespace_on(0)
    options = RedisOptions(url=own_cluster.url)
    storage = RedisStorage(options, PluginContext(namespace=namespace))
    broker = LocalBroker(storage, SystemClock(), settings=(QueueSettings(queue=up),))
    await broker.start()
    try:
        calls = [broker.submit([new_job(queue=queue)]) for queue in (up, up, lost, up)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(answer, Unavailable) for answer in answers] == [
            False,
            False,
            True,
            False,
        ]
        # Nothing was to be decided for several queues at once.
        marks = f"plugq:{{{namespace}/{up}}}:marks"
        assert own_cluster.nodes[1].command("EXISTS", marks) == 0
    finally:
        await broker.stop()


async def test_a_peer_that_is_awake_leaves_a_wake_up_to_another(
    own_cluster: Any, open_store: OpenStore, new_job: NewJobs, claim: Claim
) -> None:
    """It has no room for what the other queue has, perhaps."""
    async with two_queues(own_cluster, open_store) as (storage, first, second):
        watches = {name: storage.watch(name) for name in ("p", "q")}
        for name, watch in watches.items():
            assert await anext(watch) == Resync()
            await storage.claim(claim(1, name, queues=(first, second), peer=name))
        await storage.submit([new_job("a", queue=first)])
        await storage.submit([new_job("b", queue=second)])
        async with asyncio.timeout(PATIENCE):
            assert [await anext(watch) for watch in watches.values()] == [Wake()] * 2
        for watch in watches.values():
            await watch.aclose()
