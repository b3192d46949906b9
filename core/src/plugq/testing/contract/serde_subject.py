"""What the tests of a serde share: the serde under test, plain values, and what is the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from plugq.errors import PayloadError, Undecodable
from plugq.protocols.plugin import PluginContext
from plugq.protocols.serde import SerdeContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from hypothesis.strategies import SearchStrategy

    from plugq.protocols.serde import Serde

#: Whose values the tests encode.
CONTEXT = SerdeContext(task="mail.send", queue="mail", id="a")
#: How many values a test takes at least.
EXAMPLES = 100
#: How many levels of lists and dictionaries every serde carries.
LEVELS = 32


class SerdeSubject:
    """Makes the serde under test."""

    #: By this the pytest plugin knows its contracts.
    plugq_contract: ClassVar[bool] = True
    #: Bytes of memory that a decode may take, beside 128 for each byte that it is given.
    memory: ClassVar[int] = 64 * 2**20

    def make(self, context: PluginContext) -> Serde:
        """Return a serde, one of the same options each time."""
        raise NotImplementedError

    def values(self) -> SearchStrategy[Any]:
        """Return what is carried beyond plain values, alone and inside them; by default nothing.

        ``st.binary() | st.datetimes()`` is how a serde says that it carries bytes and datetimes.
        """
        return st.nothing()

    def hostile(self) -> Iterable[bytes]:
        """Return bytes made against this format, such as a header that claims too much."""
        return ()

    def serde(self) -> Serde:
        """Return a new serde."""
        return self.make(PluginContext())

    def carried(self) -> SearchStrategy[Any]:
        """Return every value that has to come back."""
        leaves = (
            st.none()
            | st.booleans()
            | st.integers(-(2**63), 2**64 - 1)
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text()
            | self.values()
        )
        return st.recursive(
            leaves,
            lambda inner: (
                st.lists(inner, max_size=8) | st.dictionaries(st.text(), inner, max_size=8)
            ),
            max_leaves=20,
        )


def each(values: SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Check many values, and show the smallest that fails.

    A Hypothesis profile of the user's project may ask for more values, and not for fewer.
    """

    # How long one takes says nothing on a busy machine.
    @settings(
        max_examples=max(EXAMPLES, settings().max_examples),
        phases=tuple(Phase),
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(values)
    def holds(value: Any) -> None:
        check(value)

    holds()


def there_and_back(serde: Serde, value: Any) -> Any:
    """Return what becomes of a value."""
    return serde.decode(serde.encode(value, CONTEXT), CONTEXT)


def attempt(serde: Serde, value: Any) -> bytes | PayloadError:
    """Return the bytes of a value, or why it is refused; any other error gets out."""
    try:
        return serde.encode(value, CONTEXT)
    except PayloadError as refused:
        return refused


def decoded(serde: Serde, data: bytes) -> Any:
    """Decode bytes that may be anybody's; what is no value comes back as its error."""
    try:
        return serde.decode(data, CONTEXT)
    except Undecodable as error:
        return error


def same(value: Any, back: Any) -> bool:
    """Return whether a value came back: equal, of the same types and in the same order.

    A tuple may have become a list.
    """
    kind = type(value)
    if kind is tuple and type(back) is list:
        back = tuple(back)
    if kind is not type(back):
        return False
    if kind is float:
        return repr(value) == repr(back)
    if kind is list or kind is tuple:
        return len(value) == len(back) and all(map(same, value, back))
    if kind is dict:
        return same(list(value), list(back)) and same(list(value.values()), list(back.values()))
    return bool(value == back)


def nested(levels: int, *, mapped: bool = False) -> Any:
    """Return a value of so many lists inside each other, or dictionaries."""
    value: Any = 1
    for _ in range(levels):
        value = {"k": value} if mapped else [value]
    return value


def levels_of(value: Any) -> int:
    """Return how many lists or dictionaries lie inside each other, each with one element."""
    levels = 0
    while type(value) in {list, dict}:
        (value,) = value.values() if type(value) is dict else value
        levels += 1
    return levels


def ends(value: Any) -> bool:
    """Return whether nothing in a value contains itself."""
    seen: set[int] = set()
    around: set[int] = set()
    ways = [(value, True)]
    while ways:
        item, inwards = ways.pop()
        if type(item) not in {list, tuple, dict}:
            continue
        if not inwards:
            around.remove(id(item))
        elif id(item) in around:
            return False
        elif id(item) not in seen:
            seen.add(id(item))
            around.add(id(item))
            ways.append((item, False))
            ways.extend((part, True) for part in (item.values() if type(item) is dict else item))
    return True


__all__ = [
    "CONTEXT",
    "LEVELS",
    "SerdeSubject",
    "attempt",
    "decoded",
    "each",
    "ends",
    "levels_of",
    "nested",
    "same",
    "there_and_back",
]
