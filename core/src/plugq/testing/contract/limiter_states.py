"""The state: small, all there is, and bytes that may be anybody's."""

from __future__ import annotations

from plugq.protocols.limiter import MAX_STATE
from plugq.protocols.plugin import API_VERSION
from plugq.testing.contract.limiter_walk import PLENTY, START, LimiterSubject

_FOREIGN = (b"", b"\0", b"\xff" * 8, b"no state of any limiter", bytes(range(256)))


class States(LimiterSubject):
    """What is kept between two steps."""

    def test_it_is_of_this_plugin_api(self) -> None:
        """As every plugin says."""
        assert self.limiter().api_version == API_VERSION

    def test_the_state_is_small(self) -> None:
        """However many moments there were."""
        for caller in self.callers():
            size = 0
            for _ in range(300):
                caller.now += caller.random.random() * caller.limiter.window / 150
                caller.acquire(caller.random.randint(1, 1 + self.most(0.0) // 100))
                size = max(size, len(caller.state or b""))
            assert size <= self.largest()

    def largest(self) -> int:
        """Return how long a state may be."""
        return MAX_STATE

    def test_the_state_is_all_there_is(self) -> None:
        """A limiter that has seen nothing answers from a state as the one that has."""
        for caller in self.callers():
            for _ in caller.walk(30):
                caller.wait()
                want = caller.want()
                steps = [
                    limiter.step(caller.state, want, caller.now)
                    for limiter in (caller.limiter, self.limiter(), caller.limiter)
                ]
                assert steps[0] == steps[1] == steps[2]

    def test_a_refusal_changes_nothing(self) -> None:
        """So that it needs no write."""
        for caller in self.callers():
            for _ in range(40):
                before = caller.state
                if not caller.acquire(PLENTY).granted:
                    assert caller.state == before
                caller.now += caller.limiter.window * caller.random.random() / 10

    def test_foreign_bytes_count_as_none(self) -> None:
        """Another limiter may have been configured before."""
        limiter = self.limiter()
        fresh = limiter.step(None, PLENTY, START)
        for state in _FOREIGN:
            assert limiter.step(state, PLENTY, START) == fresh

    def test_damaged_bytes_raise_nothing(self) -> None:
        """Nor do they grant more than there is at first."""
        for caller in self.callers():
            for _ in caller.walk(20):
                if caller.state is None:
                    continue
                place = caller.random.randrange(len(caller.state))
                flipped = bytearray(caller.state)
                flipped[place] ^= 1 << caller.random.randrange(8)
                for state in (caller.state[:place], caller.state + b"\0", bytes(flipped)):
                    step = caller.limiter.step(state, PLENTY, caller.now)
                    assert step.granted <= self.most(0.0)


__all__ = ["States"]
