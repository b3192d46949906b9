"""The limiter contract: subclass it, make your limiter, and pytest runs every promise."""

from __future__ import annotations

from plugq.testing.contract.limiter_bounds import Bounds
from plugq.testing.contract.limiter_states import States
from plugq.testing.contract.limiter_times import Times


class LimiterContract(Bounds, Times, States):
    """What every limiter does, as tests.

    ::

        class TestMine(LimiterContract):
            def make(self, context: PluginContext) -> Limiter:
                return MyLimiter(MyOptions(limit=5, per=2.0), context)

            def most(self, seconds: float) -> int:
                return 5 * (math.floor(seconds / 2.0) + 1)

    ``make`` is called several times and gives a limiter of the same options each time. ``most``
    is the bound in numbers: how many starts there may be from one moment to another one so many
    seconds later, both of them included. The tests walk at random, the same way in every run.
    """


__all__ = ["LimiterContract"]
