"""The bound, and that what it leaves is granted."""

from __future__ import annotations

from plugq.testing.contract.limiter_walk import PLENTY, LimiterSubject, crowded

#: Seconds by which starts come late; a sum with such a number is exact.
_LATE = (0.125, 2.0)


class Bounds(LimiterSubject):
    """Never more than the bound, and as much as there is."""

    def test_every_window_keeps_the_bound(self) -> None:
        """Wherever it begins."""
        for caller in self.callers():
            for _ in caller.walk(80):
                pass
            assert crowded(caller.kept, self.most) is None

    def test_a_greedy_caller_keeps_the_bound(self) -> None:
        """One that wants everything and comes the moment that there is something again."""
        for caller in self.callers():
            for _ in range(80):
                step = caller.acquire(PLENTY)
                assert step.retry_at is not None
                assert step.retry_at > caller.now
                caller.now = step.retry_at
            assert crowded(caller.kept, self.most) is None

    def test_many_moments_keep_the_bound(self) -> None:
        """More of them in one window than a state can hold."""
        caller = next(self.callers())
        for _ in range(600):
            caller.now += caller.random.random() * caller.limiter.window / 250
            caller.acquire(caller.random.randint(1, 1 + self.most(0.0) // 100))
        assert crowded(caller.kept, self.most) is None

    def test_starts_that_come_late_keep_the_bound_of_the_widened(self) -> None:
        """Though the one before came late and the one after did not."""
        for late in _LATE:
            for caller in self.callers():
                caller.limiter = caller.limiter.widened(late)
                for step in caller.walk(60):
                    if caller.random.random() < 0.5 and step.retry_at is not None:
                        caller.now = step.retry_at
                starts = [
                    (at + caller.random.choice((0.0, late, late / 2)), number)
                    for at, number in caller.kept
                ]
                assert crowded(starts, self.most_late) is None

    def test_the_widened_still_grants(self) -> None:
        """However late the starts may come."""
        for late in _LATE:
            limiter = self.limiter().widened(late)
            step = limiter.step(None, PLENTY, 0.0)
            assert step.granted >= 1
            assert step.retry_at is not None
            assert limiter.step(step.state, 1, step.retry_at).granted == 1

    def test_all_of_the_bound_is_granted_at_first(self) -> None:
        """No state is a full budget."""
        for caller in self.callers():
            assert caller.acquire(PLENTY).granted == self.most(0.0)

    def test_no_more_is_granted_than_is_wanted(self) -> None:
        """And no less, if there is as much."""
        for caller in self.callers():
            for _ in caller.walk(20):
                caller.wait()
                budget = caller.budget()
                for want in {1, 2, max(1, budget - 1), budget + 1, PLENTY}:
                    granted = caller.limiter.step(caller.state, want, caller.now).granted
                    assert granted == min(want, budget)

    def test_what_is_refused_takes_nothing(self) -> None:
        """Who asked for too much has as much later as one who asked for what there was."""
        for caller in self.callers():
            for _ in caller.walk(30):
                caller.wait()
                step = caller.limiter.step(caller.state, PLENTY, caller.now)
                modest = caller.limiter.step(caller.state, step.granted, caller.now)
                for part in range(12):
                    later = caller.now + part * caller.limiter.window / 20
                    budgets = {caller.budget(later, state) for state in (step.state, modest.state)}
                    assert len(budgets) == 1

    def test_who_wants_nothing_is_granted_nothing(self) -> None:
        """Nor is there anything to try again for."""
        for caller in self.callers():
            for _ in caller.walk(10):
                for want in (0, -1):
                    step = caller.limiter.step(caller.state, want, caller.now)
                    assert (step.granted, step.retry_at) == (0, None)
                    assert step.state == caller.state


__all__ = ["Bounds"]
