"""Bytes that are damaged or made to harm: ``Undecodable``, within bounds, and nothing else."""

from __future__ import annotations

import gzip
import pickle
import tracemalloc
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from plugq.errors import PayloadError, Undecodable
from plugq.testing.contract.serde_subject import CONTEXT, SerdeSubject, attempt, decoded, each, ends

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plugq.protocols.serde import Serde

_SAMPLES: tuple[Any, ...] = (
    None,
    [1, -1, 2**40, 1.5, "text", None, True, {"k": [{}, []], "é": "\U0001f600"}],
    ((1, "a"), {"q": 2.0}),
    ["long enough to be treated in another way"] * 400,
)

_MEBI = 2**20
#: What opens a list or a map in JSON, MessagePack, CBOR and others, again and again.
_OPENERS = tuple(
    (opener * _MEBI)[:_MEBI]
    for opener in (
        b"[",
        b'{"a":',
        b"(",
        b"l",
        b"d1:a",
        b"\x91",
        b"\x81\xa1a",
        b"\xdc\x00\x01",
        b"\x81",
        b"\x9f",
        b"\xbf\x61a",
        b"\xc1",
        b"\xd8\x1c",
        b"<a>",
        b"- ",
    )
)
#: Headers of lists, maps, texts and bytes that are said to be huge.
_CLAIMS = tuple(
    bytes.fromhex(header) + rest
    for header in (
        "ddffffffff",
        "dfffffffff",
        "dbffffffff",
        "c6ffffffff",
        "c9ffffffff01",
        "9b0000010000000000",
        "bb0000010000000000",
        "7b0000010000000000",
        "5b0000010000000000",
        "9bffffffffffffffff",
        "0000010000000000",
        "ffffffffffffffff",
    )
    for rest in (b"", b"\x01" * 64)
)
_NUMBERS = (
    b"1" * 5_000,
    b"9" * _MEBI,
    b"-" + b"1" * 100_000,
    b"1e999",
    b"1e-999999999",
    b"0." + b"3" * _MEBI,
    b"NaN",
    b"Infinity",
    b"[1e99999999999999999999]",
    b"\xc2\x5a\x00\x10\x00\x00" + b"\xff" * _MEBI,
)
_TEXTS = (b'"\xff"', b'"\\ud800"', b"\xef\xbb\xbf[]", b"\xff\xfe[\x00]\x00", b'{"a": 1, "a": 2}')

#: Lists that contain themselves, in CBOR and YAML, and one shared reference to nothing.
_RINGS = (
    b"\xd8\x1c\x81\xd8\x1d\x00",
    b"\xd8\x1c\xa1\x61k\xd8\x1d\x00",
    b"\xd8\x1d\x00",
    b"&a [*a]",
    b"&a {k: *a}",
)

#: Values of types that CBOR, MessagePack and YAML have besides: patterns, addresses, fractions,
#: sets, times, extensions, undefined.
_ODD = (
    b"\xd8\x23\x61.",
    b"\xd9\x01\x04\x44\x7f\x00\x00\x01",
    b"\xd8\x1e\x82\x01\x02",
    b"\xc4\x82\x01\x02",
    b"\xd9\x01\x02\x81\x01",
    b"\xc1\x00",
    b"\xd9\xff\xfe\x00",
    b"\xf7",
    b"\xf8\xff",
    b"\xd4\x05\x00",
    b"\xd6\xff\x00\x00\x00\x00",
    b"\x81\xc0\x01",
    b"\xa1\x01\x02",
    b"2026-01-02",
    b"{1: 2}",
    b"!!set {a}",
)

_SPRUNG: list[str] = []


def sprung() -> str:
    """Tell that bytes had code run."""
    _SPRUNG.append("")
    return ""


class _Trap:
    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return sprung, ()


def _traps() -> Iterator[bytes]:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.dumps([_Trap()], protocol)
    name = f"{sprung.__module__}.sprung"
    yield f"!!python/object/apply:{name} []".encode()
    yield f'{{"py/reduce": [{{"py/function": "{name}"}}, {{"py/tuple": []}}]}}'.encode()


def _bombs() -> Iterator[bytes]:
    """Yield small bytes that unpack to 128 MiB."""
    for window in (zlib.MAX_WBITS, -zlib.MAX_WBITS):
        press = zlib.compressobj(wbits=window)
        parts = [press.compress(b" " * _MEBI) for _ in range(128)]
        yield b"".join(parts) + press.flush()
    yield gzip.compress(b" " * _MEBI) * 128


class Damage(SerdeSubject):
    """Bytes from anywhere."""

    def heads(self, serde: Serde) -> set[bytes]:
        """Return how encodings begin, so that what follows is believed."""
        encodings = [serde.encode(value, CONTEXT) for value in _SAMPLES]
        return {encoding[:length] for encoding in encodings for length in range(5)}

    def test_any_bytes_are_a_value_or_undecodable(self) -> None:
        """No foreign error gets out."""
        serde = self.serde()
        for data in (b"", b"\x00", b" ", b"\xff" * 8, bytes(range(256))):
            _look(serde, data)
        heads = st.sampled_from(sorted(self.heads(serde)))
        bytes_ = st.tuples(heads, st.binary(max_size=200)).map(b"".join)
        each(bytes_, lambda data: _look(serde, data))

    def test_each_beginning_of_an_encoding_is_a_value_or_undecodable(self) -> None:
        """Something was cut off."""
        serde = self.serde()
        for value in _SAMPLES:
            data = serde.encode(value, CONTEXT)
            for length in range(min(len(data), 300)):
                _look(serde, data[:length])
                _look(serde, data[: len(data) - length])

    def test_an_encoding_with_a_wrong_bit_is_a_value_or_undecodable(self) -> None:
        """Wherever it is."""
        serde = self.serde()
        for value in _SAMPLES:
            data = serde.encode(value, CONTEXT)
            for place in range(min(len(data), 300)):
                for bit in range(8):
                    flipped = bytearray(data)
                    flipped[place] ^= 1 << bit
                    _look(serde, bytes(flipped))

        def check(damage: tuple[bytes, int, bytes]) -> None:
            data, place, other = damage
            place %= len(data) + 1
            _look(serde, data[:place] + other + data[place + len(other) :])

        encodings = self.carried().map(lambda value: serde.encode(value, CONTEXT))
        each(st.tuples(encodings, st.integers(0, 2**20), st.binary(max_size=4)), check)

    def test_deep_nesting_is_a_value_or_undecodable(self) -> None:
        """A mebibyte of openers exhausts neither stack nor memory."""
        self._bear(_OPENERS)

    def test_large_claims_are_undecodable_before_they_are_believed(self) -> None:
        """A list of 2**40 elements takes no memory until they come."""
        self._bear(_CLAIMS)

    def test_giant_numbers_and_broken_text_are_a_value_or_undecodable(self) -> None:
        """Numbers of a mebibyte, and of no size at all."""
        self._bear((*_NUMBERS, *_TEXTS))

    def test_what_unpacks_to_much_more_is_undecodable(self) -> None:
        """A few bytes of compressed blanks."""
        self._bear(tuple(_bombs()))

    def test_what_was_made_against_it_is_undecodable(self) -> None:
        """What the class names in ``hostile()``."""
        serde = self.serde()
        for data in self.hostile():
            with _within(self.memory + 128 * len(data)):
                assert isinstance(decoded(serde, data), Undecodable)

    def test_nothing_that_contains_itself_is_decoded(self) -> None:
        """A handler that walks through its arguments comes to an end."""
        serde = self.serde()
        for head in self.heads(serde):
            for ring in _RINGS:
                assert ends(decoded(serde, head + ring))

    def test_nothing_is_decoded_that_it_would_not_encode(self) -> None:
        """A handler never meets a type of the decoder's own, or a pattern that runs for hours."""
        serde = self.serde()
        for head in self.heads(serde):
            for odd in _ODD:
                found = decoded(serde, head + odd)
                refused = None if isinstance(found, Undecodable) else attempt(serde, found)
                assert not isinstance(refused, PayloadError), f"a {type(found).__qualname__}"

    def test_bytes_have_no_code_run(self) -> None:
        """Neither as pickles do it nor otherwise."""
        serde = self.serde()
        _SPRUNG.clear()
        for head in self.heads(serde):
            for trap in _traps():
                _look(serde, head + trap)
                assert not _SPRUNG, "decoding ran what the bytes said"

    def _bear(self, hostile: tuple[bytes, ...]) -> None:
        serde = self.serde()
        heads = sorted(self.heads(serde))
        for data in hostile:
            for head in heads:
                with _within(self.memory + 128 * len(data)):
                    _look(serde, head + data)


def _look(serde: Serde, data: bytes) -> None:
    found = decoded(serde, data)
    if isinstance(found, Undecodable):
        assert "\n" not in str(found)


@contextmanager
def _within(most: int) -> Iterator[None]:
    """Fail if the body takes more memory than that at any moment."""
    traced = tracemalloc.is_tracing()
    if not traced:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        yield
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        if not traced:
            tracemalloc.stop()
    assert peak <= most, f"it took {peak} bytes of memory, where {most} may be"


__all__ = ["Damage"]
