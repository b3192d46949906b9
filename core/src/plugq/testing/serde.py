"""The serde contract: subclass it, make your serde, and pytest runs every promise."""

from __future__ import annotations

from importlib import import_module

# Whoever lacks it is told how to get it, instead of that a module of ours can not be imported.
try:
    import_module("hypothesis")
except ModuleNotFoundError as _missing:
    _message = "SerdeContract needs Hypothesis; run: pip install 'plugq[testing]'"
    raise ModuleNotFoundError(_message, name="hypothesis") from _missing

from plugq.testing.contract.serde_damage import Damage
from plugq.testing.contract.serde_refusals import Refusals
from plugq.testing.contract.serde_trips import Declared, Sharing, Trips


class SerdeContract(Declared, Trips, Sharing, Refusals, Damage):
    """What every serde does, as tests.

    ::

        class TestMine(SerdeContract):
            def make(self, context: PluginContext) -> Serde:
                return MySerde(MyOptions(), context)

            def values(self) -> SearchStrategy[Any]:
                return st.binary() | st.datetimes()

    ``make`` is called several times and gives a serde of the same options each time. Every serde
    carries text, integers of 64 bits, finite floats, booleans, ``None``, lists and dictionaries
    with text as keys; ``values`` adds what this one carries besides. Whatever else it is given
    comes back equal and of the same types, or is refused. ``hostile`` may return bytes that are
    made against the format. The options should let values of a few hundred kilobytes pass.

    It needs Hypothesis, which ``pip install 'plugq[testing]'`` brings.
    """


__all__ = ["SerdeContract"]
