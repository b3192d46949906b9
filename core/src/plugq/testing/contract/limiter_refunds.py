"""Giving back what was not used."""

from __future__ import annotations

from plugq.testing.contract.limiter_walk import LimiterSubject, crowded


class Refunds(LimiterSubject):
    """What is given back can be granted again, once."""

    def test_what_is_given_back_can_be_granted_again(self) -> None:
        """At once and in full."""
        for caller in self.callers():
            for _ in caller.walk(40):
                caller.wait()
                before = caller.budget()
                step = caller.limiter.step(caller.state, caller.want(), caller.now)
                state = caller.limiter.refund(step.state, step.granted, step.at)
                assert caller.limiter.step(state, before + 1, caller.now).granted == before

    def test_a_part_can_be_given_back(self) -> None:
        """The rest stays granted."""
        for caller in self.callers():
            for _ in caller.walk(40):
                caller.wait()
                before = caller.budget()
                step = caller.limiter.step(caller.state, caller.want(), caller.now)
                if step.granted:
                    unused = caller.random.randint(0, step.granted)
                    state = caller.limiter.refund(step.state, unused, step.at)
                    left = caller.limiter.step(state, before + 1, caller.now).granted
                    assert left == before - step.granted + unused

    def test_what_is_kept_keeps_the_bound(self) -> None:
        """In whatever order the callers give back theirs, also when others came between."""
        for caller in self.callers():
            for _ in caller.walk(120):
                pass
            assert crowded(caller.kept, self.most) is None

    def test_giving_back_late_gains_nothing(self) -> None:
        """What was granted long ago is no budget any more."""
        for caller in self.callers():
            for step in caller.walk(40):
                caller.now += caller.limiter.window * 1.5
                caller.acquire(caller.want())
                if step.granted:
                    budget = caller.budget()
                    state = caller.limiter.refund(caller.state, step.granted, step.at)
                    assert caller.budget(state=state) == budget

    def test_more_than_was_granted_can_not_be_given_back(self) -> None:
        """The budget is never greater than it was."""
        for caller in self.callers():
            for _ in range(20):
                caller.now += caller.limiter.window / 20
                before = caller.budget()
                step = caller.acquire(1)
                if step.granted:
                    state = caller.limiter.refund(step.state, 1000, step.at)
                    assert caller.budget(state=state) == before

    def test_a_moment_without_grants_gives_nothing_back(self) -> None:
        """In the time to come, for instance, or before there was anything."""
        for caller in self.callers():
            for _ in caller.walk(20):
                budget = caller.budget()
                for at in (caller.now + 1.0, 1.0):
                    state = caller.limiter.refund(caller.state, 1, at)
                    assert (state is None) == (caller.state is None)
                    assert caller.budget(state=state) == budget

    def test_giving_nothing_back_changes_nothing(self) -> None:
        """The state stays as it is."""
        for caller in self.callers():
            for step in caller.walk(20):
                for unused in (0, -1):
                    assert caller.limiter.refund(caller.state, unused, step.at) == caller.state

    def test_taking_and_giving_back_wears_nothing_out(self) -> None:
        """The budget of one who only looks is what it would be had nobody looked."""
        for caller in self.callers():
            for _ in caller.walk(10, refunds=False):
                pass
            untouched = caller.state
            for _ in range(100):
                caller.now += caller.limiter.window / 150
                step = caller.limiter.step(caller.state, caller.want(), caller.now)
                caller.state = caller.limiter.refund(step.state, step.granted, step.at)
                assert caller.budget() == caller.budget(state=untouched)


__all__ = ["Refunds"]
