"""Dispatch: which claim asks the storage when."""

from __future__ import annotations

from math import inf
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from plugq.broker.dispatch import (
    PAUSE,
    ROUNDS,
    Action,
    Answered,
    Asked,
    Dispatch,
    Due,
    Event,
    GiveBack,
    Gone,
    LetIn,
    Probe,
    Refused,
    Reply,
    Returned,
    Short,
    Tick,
    Timer,
    Woken,
)
from plugq.protocols.storage import ClaimReply, ClaimRequest, Lease


def request(limit: int = 1, queues: tuple[str, ...] = ("q",)) -> ClaimRequest:
    return ClaimRequest(worker="w", number=1, queues=queues, limit=limit)


def leases(number: int, next_in: float | None = None) -> ClaimReply:
    return ClaimReply(
        leases=tuple(
            Lease(queue="q", id=str(i), task="t", token=i, attempt=1, max_attempts=1, body=b"")
            for i in range(number)
        ),
        next_in=next_in,
    )


def kinds(actions: list[Action]) -> list[type]:
    return [type(action) for action in actions]


EMPTY = ClaimReply()


def dispatch(poll: float = 10.0) -> Dispatch:
    return Dispatch(lambda: poll)


def test_a_claim_asks_the_storage_and_is_answered_with_what_there_is() -> None:
    one = dispatch()
    assert one.handle(Asked(1, request(5), until=60), 0) == [Probe(1, request(5))]
    answer = leases(2)
    assert one.handle(Answered(1, answer), 0) == [Reply(1, answer)]
    assert one.waiting == 0


def test_a_claim_that_does_not_wait_is_answered_empty() -> None:
    one = dispatch()
    one.handle(Asked(1, request(), until=0), 0)
    assert one.handle(Answered(1, EMPTY), 0) == [Reply(1, EMPTY)]


def test_a_waiting_claim_asks_again_when_woken() -> None:
    one = dispatch()
    one.handle(Asked(1, request(), until=60), 0)
    assert one.handle(Answered(1, EMPTY), 0) == [Timer(10)]
    assert one.handle(Woken(), 5) == [Probe(1, request()), Timer(None)]


def test_a_wake_up_during_a_probe_is_not_lost() -> None:
    one = dispatch()
    one.handle(Asked(1, request(), until=60), 0)
    one.handle(Woken(), 0)
    assert one.handle(Answered(1, EMPTY), 0) == [Probe(1, request())]


def test_a_wake_up_during_the_last_probe_is_not_lost() -> None:
    one = dispatch()
    one.handle(Asked(1, request(), until=0), 0)
    one.handle(Woken(), 0)
    assert one.handle(Answered(1, EMPTY), 0) == [Probe(1, request())]


def test_a_claim_waits_until_the_next_job_falls_due() -> None:
    one = dispatch()
    one.handle(Asked(1, request(), until=60), 0)
    assert one.handle(Answered(1, leases(0, next_in=2.5)), 1) == [Timer(3.5)]
    assert one.handle(Tick(), 3.5) == [Probe(1, request())]


def test_an_answer_for_want_of_budgets_is_followed_by_another_claim() -> None:
    one = dispatch()
    one.handle(Asked(1, request(5), until=60), 0)
    assert one.handle(Answered(1, EMPTY, more=True), 0) == [Probe(1, request(5))]
    answer = leases(2)
    assert one.handle(Answered(1, answer, more=True), 0) == [Reply(1, answer)]
    # There is more to have, so the next claim does not wait.
    assert one.handle(Asked(2, request(5), until=60), 0) == [Probe(2, request(5))]
    assert one.handle(Answered(2, EMPTY), 0) == [Timer(10)]


def test_a_contended_queue_is_left_alone_for_a_moment() -> None:
    one = dispatch()
    one.handle(Asked(1, request(), until=60), 0)
    for _ in range(ROUNDS - 1):
        assert one.handle(Answered(1, EMPTY, more=True), 0) == [Probe(1, request())]
    assert one.handle(Answered(1, EMPTY, more=True), 0) == [Timer(PAUSE)]
    assert one.handle(Tick(), PAUSE) == [Probe(1, request())]
    assert one.handle(Answered(1, EMPTY, more=True), PAUSE) == [Probe(1, request())]


def test_a_claim_that_does_not_wait_brings_budgets_too() -> None:
    one = dispatch()
    one.handle(Asked(1, request(), until=0), 0)
    for _ in range(ROUNDS - 1):
        assert one.handle(Answered(1, EMPTY, more=True), 0) == [Probe(1, request())]
    assert one.handle(Answered(1, EMPTY, more=True), 0) == [Reply(1, EMPTY)]


def test_what_may_run_again_is_claimed_by_who_waits_for_that_queue() -> None:
    one = dispatch()
    one.handle(Asked(1, request(queues=("other",)), until=60), 0)
    one.handle(Answered(1, EMPTY), 0)
    one.handle(Asked(2, request(queues=("other", "q")), until=60), 0)
    one.handle(Answered(2, EMPTY), 0)
    again = frozenset({"q"})
    assert Probe(2, request(queues=("other", "q"))) in one.handle(Woken(again), 1)
    assert one.waiting == 2


def test_what_may_run_again_is_let_in_for_others_where_nobody_waits() -> None:
    one = dispatch()
    one.handle(Asked(1, request(queues=("other",)), until=60), 0)
    one.handle(Answered(1, EMPTY), 0)
    assert one.handle(Woken(frozenset({"q"})), 1) == [LetIn(frozenset({"q"}))]
    one.handle(Short(("q",), None, one.changes), 1)
    one.handle(Woken(frozenset({"q"})), 2)
    assert kinds(one.handle(Asked(2, request(), until=60), 2))[:1] == [Probe]


def test_a_claim_waits_without_asking_while_its_queues_are_closed() -> None:
    one = dispatch()
    assert one.handle(Asked(1, request(), until=60, closed=3), 0) == [Timer(3)]
    assert one.handle(Woken(frozenset({"q"})), 2) == [Probe(1, request()), Timer(None)]


def test_a_waiting_claim_may_be_sent_along_with_something_else() -> None:
    one = dispatch()
    assert one.lend(frozenset({"q"})) is None
    one.handle(Asked(1, request(), until=60), 0)
    assert one.lend(frozenset({"q"})) is None
    one.handle(Answered(1, EMPTY), 0)
    assert one.lend(frozenset({"other"})) is None
    assert one.lend(frozenset({"q"})) == Probe(1, request())
    assert one.lend(frozenset({"q"})) is None
    answer = leases(1)
    assert Reply(1, answer) in one.handle(Answered(1, answer), 0)


def test_a_claim_that_was_sent_along_in_vain_is_asked_under_its_number() -> None:
    one = dispatch()
    one.handle(Asked(1, request(), until=60), 0)
    one.handle(Answered(1, EMPTY), 0)
    one.lend(frozenset({"q"}))
    assert Probe(1, request()) in one.handle(Returned(1), 0)
    one.handle(Answered(1, EMPTY), 0)
    one.lend(frozenset({"q"}))
    one.handle(Gone(1), 0)
    assert Probe(1, request()) in one.handle(Returned(1), 0)
    answer = leases(1)
    assert one.handle(Answered(1, answer), 0) == [GiveBack(answer)]
    assert one.handle(Returned(1), 0) == []


def test_the_slow_poll_makes_up_for_a_lost_wake_up() -> None:
    one = dispatch(poll=4)
    one.handle(Asked(1, request(), until=60), 0)
    assert one.handle(Answered(1, EMPTY), 0) == [Timer(4)]
    assert one.handle(Tick(), 4) == [Probe(1, request())]


def test_patience_that_ends_is_answered_without_another_probe() -> None:
    one = dispatch(poll=100)
    one.handle(Asked(1, request(), until=60), 0)
    assert one.handle(Answered(1, EMPTY), 0) == [Timer(60)]
    assert one.handle(Tick(), 60) == [Reply(1, EMPTY)]
    assert one.waiting == 0


def test_after_a_short_answer_the_next_claim_waits_without_asking() -> None:
    one = dispatch()
    one.handle(Short(("q",), next_in=None), 0)
    assert one.handle(Asked(1, request(), until=60), 0) == [Timer(10)]


def test_a_short_answer_from_before_a_wake_up_says_nothing() -> None:
    one = dispatch()
    for event in (Woken(), Due(5)):
        since = one.changes
        one.handle(event, 0)
        one.handle(Short(("q",), None, since), 0)
        assert Probe(1, request()) in one.handle(Asked(1, request(), until=60), 0)
        one.handle(Answered(1, leases(1)), 0)


def test_after_a_short_answer_the_next_claim_still_notices_a_due_job() -> None:
    one = dispatch()
    one.handle(Short(("q",), next_in=2), 0)
    assert one.handle(Asked(1, request(), until=60), 1) == [Timer(2)]
    one.handle(Short(("q",), next_in=2), 1)
    assert kinds(one.handle(Asked(2, request(), until=60), 3)) == [Probe]


def test_a_wake_up_between_a_short_answer_and_the_claim_is_not_lost() -> None:
    one = dispatch()
    one.handle(Short(("q",), next_in=None), 0)
    one.handle(Woken(), 0)
    assert kinds(one.handle(Asked(1, request(), until=60), 0)) == [Probe]


def test_a_short_answer_says_nothing_of_other_queues() -> None:
    one = dispatch()
    one.handle(Short(("q",), next_in=None), 0)
    assert kinds(one.handle(Asked(1, request(queues=("other",)), until=60), 0)) == [Probe]


def test_a_job_that_is_known_here_to_fall_due_is_not_waited_for_longer() -> None:
    one = dispatch()
    one.handle(Asked(1, request(), until=60), 0)
    one.handle(Answered(1, EMPTY), 0)
    assert one.handle(Due(0.5), 1) == [Timer(1.5)]
    assert one.handle(Due(5), 1) == []
    assert one.handle(Tick(), 1.5) == [Probe(1, request())]


def test_a_due_job_counts_although_it_was_stored_during_a_probe() -> None:
    one = dispatch()
    one.handle(Asked(1, request(), until=60), 0)
    one.handle(Due(0.5), 1)
    assert one.handle(Answered(1, EMPTY), 1) == [Timer(1.5)]


def test_a_due_job_counts_for_the_claim_after_a_short_answer() -> None:
    one = dispatch()
    one.handle(Short(("q",), next_in=None), 0)
    one.handle(Due(0.5), 0)
    assert one.handle(Asked(1, request(), until=60), 0) == [Timer(0.5)]


def test_one_wake_up_for_one_job_makes_one_of_many_claims_ask() -> None:
    one = dispatch()
    for key in range(5):
        one.handle(Asked(key, request(), until=60), 0)
        one.handle(Answered(key, EMPTY), 0)
    first = one.handle(Woken(), 1)
    assert [action for action in first if isinstance(action, Probe)] == [Probe(0, request())]
    # It had room for more than it got: nothing is left for the others.
    assert not [x for x in one.handle(Answered(0, EMPTY), 1) if isinstance(x, Probe)]


def test_one_wake_up_for_many_jobs_reaches_every_claim() -> None:
    one = dispatch()
    for key in range(3):
        one.handle(Asked(key, request(), until=60), 0)
        one.handle(Answered(key, EMPTY), 0)
    one.handle(Woken(), 1)
    served = one.handle(Answered(0, leases(1)), 1)
    assert kinds(served) == [Reply, Probe]
    assert kinds(one.handle(Answered(1, leases(1)), 1))[:2] == [Reply, Probe]


def test_a_wake_up_reaches_claims_of_other_queues() -> None:
    one = dispatch()
    for key, queue in enumerate(("a", "b")):
        one.handle(Asked(key, request(queues=(queue,)), until=60), 0)
        one.handle(Answered(key, EMPTY), 0)
    one.handle(Woken(), 1)
    answered = one.handle(Answered(0, EMPTY), 1)
    assert [x for x in answered if isinstance(x, Probe)] == [Probe(1, request(queues=("b",)))]


def test_what_was_granted_to_a_caller_who_left_is_given_back() -> None:
    one = dispatch()
    one.handle(Asked(1, request(), until=60), 0)
    one.handle(Gone(1), 0)
    answer = leases(1)
    assert one.handle(Answered(1, answer), 0) == [GiveBack(answer)]
    assert one.waiting == 0


def test_a_waiting_caller_who_left_is_forgotten() -> None:
    one = dispatch()
    one.handle(Asked(1, request(), until=60), 0)
    one.handle(Answered(1, EMPTY), 0)
    assert one.handle(Gone(1), 0) == [Timer(None)]
    assert one.handle(Woken(), 0) == []


def test_a_failed_probe_ends_its_claim() -> None:
    one = dispatch()
    one.handle(Asked(1, request(), until=60), 0)
    assert one.handle(Refused(1), 0) == [Reply(1, None)]
    assert one.waiting == 0


class Claims(RuleBasedStateMachine):
    """A storage with a counter of jobs behind a dispatch: no job waits beside an idle claim."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.jobs = 0
        self.idle = False
        self.dispatch = Dispatch(lambda: 10.0)
        self.timer: float | None = None
        self.probes: list[tuple[Probe, ClaimReply]] = []
        self.open: set[int] = set()
        self.served = 0
        self.submitted = 0
        self.keys = 0

    def handle(self, event: Event) -> None:
        for action in self.dispatch.handle(event, self.now):
            self.perform(action)

    def perform(self, action: Any) -> None:
        match action:
            case Probe(_, asked):
                # The storage decides at once; the answer arrives whenever the machine says.
                granted = min(self.jobs, asked.limit)
                self.jobs -= granted
                if granted < asked.limit:
                    self.idle = True
                self.probes.append((action, leases(granted)))
            case Reply(key, reply):
                self.open.discard(key)
                self.served += len(reply.leases) if reply else 0
            case GiveBack(reply):
                self.jobs += len(reply.leases)
                self.wake()
            case Timer(at):
                self.timer = at

    def wake(self) -> None:
        if self.idle:
            self.idle = False
            self.handle(Woken())

    @rule(limit=st.integers(1, 3), patience=st.sampled_from([0.0, 5.0, 60.0]))
    def ask(self, limit: int, patience: float) -> None:
        self.keys += 1
        self.open.add(self.keys)
        self.handle(Asked(self.keys, request(limit), self.now + patience))

    @precondition(lambda self: self.probes)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.probes) - 1))
        probe, reply = self.probes.pop(index)
        self.handle(Answered(probe.key, reply))

    @rule(number=st.integers(1, 3))
    def submit(self, number: int) -> None:
        self.jobs += number
        self.submitted += number
        self.wake()

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.open)))
        self.open.discard(key)
        self.handle(Gone(key))

    @rule(seconds=st.floats(0.1, 30))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        if self.timer is not None and self.timer <= self.now:
            self.timer = None
            self.handle(Tick())

    @invariant()
    def no_job_waits_beside_an_idle_claim(self) -> None:
        if self.jobs and self.open and not self.probes:
            raise AssertionError("a job is ready, a claim waits, and nothing is under way")

    @invariant()
    def a_waiting_claim_has_a_timer(self) -> None:
        if self.dispatch.waiting and not self.probes:
            assert self.timer is not None
            assert self.timer < inf

    @invariant()
    def every_job_is_somewhere(self) -> None:
        on_the_way = sum(len(reply.leases) for _, reply in self.probes)
        assert self.submitted == self.jobs + on_the_way + self.served

    @precondition(lambda self: self.probes)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.probes) - 1))
        probe, reply = self.probes.pop(index)
        self.jobs += len(reply.leases)
        self.handle(Refused(probe.key))
        if reply.leases:
            self.wake()


TestClaims = Claims.TestCase
