"""When to try again, and clocks that are set back."""

from __future__ import annotations

from plugq.testing.contract.limiter_walk import PLENTY, LimiterSubject, crowded, just_before


class Times(LimiterSubject):
    """Moments."""

    def test_at_retry_at_something_is_granted(self) -> None:
        """Nobody comes in vain."""
        for caller in self.callers():
            for step in caller.walk(60):
                if step.retry_at is not None:
                    assert caller.limiter.step(step.state, 1, step.retry_at).granted == 1

    def test_before_retry_at_nothing_is_granted(self) -> None:
        """Nobody waits in vain."""
        for caller in self.callers():
            for step in caller.walk(60):
                if step.retry_at is not None:
                    soon = just_before(step.retry_at)
                    assert caller.limiter.step(step.state, 1, soon).granted == 0

    def test_only_who_is_refused_is_told_when_to_try_again(self) -> None:
        """Whoever got less than was wanted, that is."""
        for caller in self.callers():
            for _ in range(30):
                caller.wait()
                want = caller.want()
                step = caller.acquire(want)
                assert (step.retry_at is None) == (step.granted == want)

    def test_later_there_is_no_less(self) -> None:
        """As long as nobody takes anything."""
        for caller in self.callers():
            for _ in caller.walk(20):
                window = caller.limiter.window
                budgets = [caller.budget(caller.now + part * window / 7) for part in range(10)]
                assert budgets == sorted(budgets)

    def test_a_clock_that_was_set_back_gains_nothing(self) -> None:
        """A time before the latest grant counts as that."""
        for caller in self.callers():
            for step in caller.walk(30):
                if step.granted:
                    budget = caller.budget(step.at)
                    for back in (0.001, 1.0, 10.0):
                        earlier = step.at - back * caller.limiter.window
                        again = caller.limiter.step(caller.state, PLENTY, earlier)
                        assert again.granted == budget
                        assert again.at == step.at

    def test_grants_count_as_of_now(self) -> None:
        """``at`` is the time of the step."""
        for caller in self.callers():
            for step in caller.walk(20):
                assert step.at == caller.now

    def test_a_caller_with_a_slow_clock_keeps_the_bound(self) -> None:
        """Two callers take turns, one of them always behind the other."""
        for caller in self.callers():
            for _ in range(60):
                caller.wait()
                caller.acquire(caller.want())
                ahead, caller.now = caller.now, caller.now - caller.limiter.window / 3
                caller.acquire(caller.want())
                caller.now = ahead
            assert caller.kept == sorted(caller.kept, key=lambda grant: grant[0])
            assert crowded(caller.kept, self.most) is None

    def test_after_a_window_of_rest_all_is_as_new(self) -> None:
        """So that the state may be thrown away."""
        for caller in self.callers():
            fresh = caller.budget()
            for step in caller.walk(30):
                rested = step.at + caller.limiter.window * (1 + 1e-9) + 1e-6
                assert caller.budget(rested) == fresh


__all__ = ["Times"]
