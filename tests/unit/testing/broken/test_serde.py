"""The serde contract, proven: each serde here breaks one promise and must be caught."""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st

from plugq.builtin.json import JsonOptions, JsonSerde
from plugq.errors import PayloadError, Undecodable
from plugq.protocols import PluginContext, Serde, SerdeContext
from plugq.testing import SerdeContract


class Sound(JsonSerde):
    """What the serdes below are made of."""

    def __init__(self, options: Any, context: PluginContext) -> None:
        super().__init__(JsonOptions(), context)


class OfAnotherApi(Sound):
    api_version: ClassVar[int] = 99


class NamesNoMediaType(Sound):
    content_type: ClassVar[str] = "json"


class ChangesItsContentType(Sound):
    """It is a matter of the instance."""

    count: ClassVar[int] = 0

    def __init__(self, options: Any, context: PluginContext) -> None:
        super().__init__(options, context)
        type(self).count += 1
        self.content_type = f"application/json; version={self.count}"  # type: ignore[misc]


class PromisesAnything(Sound):
    capabilities: ClassVar[Any] = frozenset({"fast"})


class LaxOptions(msgspec.Struct, kw_only=True):
    indent: int = 0


class TakesAnyOption(Sound):
    Options: ClassVar[type[msgspec.Struct]] = LaxOptions


class OrderedOptions(msgspec.Struct, forbid_unknown_fields=True):
    indent: int = 0


class TakesOptionsByPlace(Sound):
    Options: ClassVar[type[msgspec.Struct]] = OrderedOptions


class RoundsNumbers(Sound):
    """What is whole is an integer."""

    def decode(self, data: bytes, context: SerdeContext) -> Any:
        return self._rounded(super().decode(data, context))

    def _rounded(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._rounded(item) for item in value]
        if isinstance(value, dict):
            return {key: self._rounded(item) for key, item in value.items()}
        return int(value) if isinstance(value, float) and value.is_integer() else value


class ForgetsSigns(RoundsNumbers):
    """Minus zero is zero."""

    def _rounded(self, value: Any) -> Any:
        return value + 0.0 if isinstance(value, float) else super()._rounded(value)


class SortsKeys(Sound):
    def encode(self, value: Any, context: SerdeContext) -> bytes:
        super().encode(value, context)
        return msgspec.json.encode(value, order="sorted")


class EndsTextAtNul(Sound):
    def encode(self, value: Any, context: SerdeContext) -> bytes:
        return super().encode(value.partition("\0")[0] if type(value) is str else value, context)


class MakesTuples(Sound):
    """Lists come back as tuples."""

    def decode(self, data: bytes, context: SerdeContext) -> Any:
        value = super().decode(data, context)
        return tuple(value) if type(value) is list else value


class LosesLastArgument(Sound):
    """Of those after the first."""

    def encode(self, value: Any, context: SerdeContext) -> bytes:
        if type(value) is tuple and len(value) == 2 and type(value[0]) is tuple:
            value = (value[0][:2], value[1])
        return super().encode(value, context)


class IsShallow(Sound):
    def encode(self, value: Any, context: SerdeContext) -> bytes:
        data = super().encode(value, context)
        if data.startswith((b"[" * 20, b'{"k":' * 20)):
            raise PayloadError(f"{context.task}: too deep")
        return data


class MakesByteArrays(Sound):
    def encode(self, value: Any, context: SerdeContext) -> bytes:
        return bytearray(super().encode(value, context))  # type: ignore[return-value]


class ChangesTheCallers(Sound):
    """It puts a mark on what it has seen."""

    def encode(self, value: Any, context: SerdeContext) -> bytes:
        data = super().encode(value, context)
        if type(value) is dict:
            value["seen"] = True
        return data


class Caches(Sound):
    """What was decoded once is handed out again."""

    def __init__(self, options: Any, context: PluginContext) -> None:
        super().__init__(options, context)
        self._known: dict[bytes, Any] = {}

    def decode(self, data: bytes, context: SerdeContext) -> Any:
        if data not in self._known:
            self._known[data] = super().decode(data, context)
        return self._known[data]


class KeepsATable(Sound):
    """Values stay in the process and their numbers travel."""

    def __init__(self, options: Any, context: PluginContext) -> None:
        super().__init__(options, context)
        self._table: list[bytes] = []

    def encode(self, value: Any, context: SerdeContext) -> bytes:
        self._table.append(super().encode(value, context))
        return b"%d" % (len(self._table) - 1)

    def decode(self, data: bytes, context: SerdeContext) -> Any:
        try:
            return super().decode(self._table[int(data)], context)
        except (ValueError, IndexError):
            raise Undecodable(f"{context.task}: unknown") from None


class WritesItsContext(Sound):
    """In letters that not every name is made of."""

    def encode(self, value: Any, context: SerdeContext) -> bytes:
        context.queue.encode("ascii")
        return super().encode(value, context)


class ChecksByAssertion(Sound):
    """Bytes of another job are an error of Python's."""

    def encode(self, value: Any, context: SerdeContext) -> bytes:
        return context.task.encode() + b"|" + super().encode(value, context)

    def decode(self, data: bytes, context: SerdeContext) -> Any:
        task, _, rest = data.partition(b"|")
        if rest and task != context.task.encode():
            raise ValueError(task)
        return super().decode(rest, context)


class SharesABuffer(Sound):
    """Between threads."""

    _buffer: bytes = b""

    def encode(self, value: Any, context: SerdeContext) -> bytes:
        self._buffer = super().encode(value, context)
        time.sleep(0)
        return self._buffer


class Stdlib(Sound):
    """The json module as it is."""

    def encode(self, value: Any, context: SerdeContext) -> bytes:
        try:
            return json.dumps(value, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise PayloadError(f"{context.task}: {error}") from None

    def decode(self, data: bytes, context: SerdeContext) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Undecodable(f"{context.task}: {error}") from None


class MakesText(Sound):
    """Of whatever it does not know."""

    def encode(self, value: Any, context: SerdeContext) -> bytes:
        with contextlib.suppress(PayloadError):
            return super().encode(value, context)
        return json.dumps(value, default=str, ensure_ascii=True, allow_nan=False).encode()


class WritesKeysAsText(Sound):
    def encode(self, value: Any, context: SerdeContext) -> bytes:
        if type(value) is dict:
            value = {
                str(key) if key is None or type(key) in {int, float, bool} else key: item
                for key, item in value.items()
            }
        return super().encode(value, context)


class WritesNothingForNan(Sound):
    def encode(self, value: Any, context: SerdeContext) -> bytes:
        return super().encode(
            None if type(value) is float and not math.isfinite(value) else value, context
        )


class RaisesTypeErrors(Sound):
    def encode(self, value: Any, context: SerdeContext) -> bytes:
        try:
            return super().encode(value, context)
        except PayloadError as error:
            raise TypeError(str(error)) from None


class NamesNoType(Sound):
    def encode(self, value: Any, context: SerdeContext) -> bytes:
        try:
            return super().encode(value, context)
        except PayloadError:
            raise PayloadError(f"{context.task}: this can not be carried") from None


class NamesNoTask(Sound):
    def encode(self, value: Any, context: SerdeContext) -> bytes:
        try:
            return super().encode(value, context)
        except PayloadError as error:
            raise PayloadError(str(error).removeprefix(context.task)) from None


class FollowsRings(Sound):
    """To the end of the stack."""

    def encode(self, value: Any, context: SerdeContext) -> bytes:
        return json.dumps(value, check_circular=False, allow_nan=False).encode()


class WritesDeeperThanItReads(Sound):
    def encode(self, value: Any, context: SerdeContext) -> bytes:
        try:
            return msgspec.json.encode(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise PayloadError(f"{context.task}: {error}") from None

    def decode(self, data: bytes, context: SerdeContext) -> Any:
        if data.startswith((b"[" * 200, b'{"k":' * 200)):
            raise Undecodable(f"{context.task}: too deep")
        return super().decode(data, context)


class LetsErrorsOut(Sound):
    """Those of the decoder."""

    def decode(self, data: bytes, context: SerdeContext) -> Any:
        return msgspec.json.decode(data)


class LetsStackOverflowsOut(Sound):
    def decode(self, data: bytes, context: SerdeContext) -> Any:
        try:
            return json.loads(data)
        except ValueError as error:
            raise Undecodable(" ".join(str(error).split())) from None


class LetsLongNumbersOut(Sound):
    """Only damaged JSON is expected."""

    def decode(self, data: bytes, context: SerdeContext) -> Any:
        try:
            return json.loads(data)
        except (json.JSONDecodeError, RecursionError, UnicodeError) as error:
            raise Undecodable(" ".join(str(error).split())) from None


class BelievesHeaders(Sound):
    """A length comes first, and room for it is made at once."""

    def encode(self, value: Any, context: SerdeContext) -> bytes:
        data = super().encode(value, context)
        return len(data).to_bytes(8, "big") + data

    def decode(self, data: bytes, context: SerdeContext) -> Any:
        length = int.from_bytes(data[:8], "big")
        with contextlib.suppress(MemoryError):
            room = bytearray(min(length, 2**28))
            room[: len(data) - 8] = data[8:]
        if length != len(data) - 8:
            raise Undecodable(f"{context.task}: damaged")
        return super().decode(data[8:], context)


class Unpacks(Sound):
    """Whatever it comes to."""

    def encode(self, value: Any, context: SerdeContext) -> bytes:
        return zlib.compress(super().encode(value, context))

    def decode(self, data: bytes, context: SerdeContext) -> Any:
        try:
            data = zlib.decompress(data)
        except zlib.error:
            raise Undecodable(f"{context.task}: damaged") from None
        return super().decode(data, context)


class Pickles(Sound):
    """It is so convenient."""

    def encode(self, value: Any, context: SerdeContext) -> bytes:
        super().encode(value, context)
        return pickle.dumps(value)

    def decode(self, data: bytes, context: SerdeContext) -> Any:
        try:
            return pickle.loads(data)  # noqa: S301 - the fault
        except Exception:  # noqa: BLE001 - the fault is another one
            raise Undecodable(f"{context.task}: damaged") from None


class TiesKnots(Sound):
    """An alias stands for what it is in."""

    def decode(self, data: bytes, context: SerdeContext) -> Any:
        if data == b"&a [*a]":
            knot: list[Any] = []
            knot.append(knot)
            return knot
        return super().decode(data, context)


class ReadsMoreThanItWrites(Sound):
    """Patterns, say."""

    def decode(self, data: bytes, context: SerdeContext) -> Any:
        if data.startswith(b"\xd8\x23"):
            return re.compile(data[3:].decode("latin-1"))
        return super().decode(data, context)


class ReadsNothingAsNone(Sound):
    def decode(self, data: bytes, context: SerdeContext) -> Any:
        return super().decode(data, context) if data else None


CAUGHT_BY: dict[type[Sound], tuple[str, ...]] = {
    OfAnotherApi: ("it_is_of_this_plugin_api",),
    NamesNoMediaType: ("its_content_type_is_a_media_type",),
    ChangesItsContentType: ("its_content_type_is_a_media_type",),
    PromisesAnything: ("its_capabilities_are_of_the_list",),
    TakesAnyOption: ("its_options_are_named_and_known",),
    TakesOptionsByPlace: ("its_options_are_named_and_known",),
    RoundsNumbers: (
        "plain_values_come_back_as_they_are",
        "edges_of_numbers_and_texts_come_back_exactly",
    ),
    ForgetsSigns: ("edges_of_numbers_and_texts_come_back_exactly",),
    SortsKeys: ("edges_of_numbers_and_texts_come_back_exactly",),
    EndsTextAtNul: ("edges_of_numbers_and_texts_come_back_exactly",),
    MakesTuples: ("plain_values_come_back_as_they_are",),
    LosesLastArgument: ("arguments_come_back",),
    IsShallow: ("some_nesting_is_carried",),
    MakesByteArrays: ("what_it_makes_is_bytes",),
    ChangesTheCallers: ("the_value_is_not_changed",),
    Caches: ("what_was_decoded_is_nobody_elses",),
    KeepsATable: ("another_instance_can_decode",),
    WritesItsContext: ("every_context_is_taken",),
    ChecksByAssertion: ("bytes_of_another_job_are_decoded_or_refused",),
    SharesABuffer: ("threads_share_an_instance",),
    Stdlib: (
        "a_type_comes_back_or_is_named",
        "a_key_comes_back_or_its_type_is_named",
        "keys_do_not_run_together",
    ),
    MakesText: ("a_type_comes_back_or_is_named",),
    WritesKeysAsText: ("keys_do_not_run_together", "a_key_comes_back_or_its_type_is_named"),
    WritesNothingForNan: ("extremes_come_back_or_are_refused",),
    RaisesTypeErrors: ("a_type_comes_back_or_is_named", "what_contains_itself_is_refused"),
    NamesNoType: ("a_type_comes_back_or_is_named", "a_key_comes_back_or_its_type_is_named"),
    NamesNoTask: ("extremes_come_back_or_are_refused", "what_contains_itself_is_refused"),
    FollowsRings: (
        "what_contains_itself_is_refused",
        "what_is_accepted_however_deep_can_be_decoded",
    ),
    WritesDeeperThanItReads: ("what_is_accepted_however_deep_can_be_decoded",),
    LetsErrorsOut: (
        "any_bytes_are_a_value_or_undecodable",
        "each_beginning_of_an_encoding_is_a_value_or_undecodable",
        "an_encoding_with_a_wrong_bit_is_a_value_or_undecodable",
    ),
    LetsStackOverflowsOut: ("deep_nesting_is_a_value_or_undecodable",),
    LetsLongNumbersOut: ("giant_numbers_and_broken_text_are_a_value_or_undecodable",),
    BelievesHeaders: ("large_claims_are_undecodable_before_they_are_believed",),
    Unpacks: ("what_unpacks_to_much_more_is_undecodable",),
    Pickles: ("bytes_have_no_code_run",),
    TiesKnots: ("nothing_that_contains_itself_is_decoded",),
    ReadsMoreThanItWrites: ("nothing_is_decoded_that_it_would_not_encode",),
    ReadsNothingAsNone: ("what_was_made_against_it_is_undecodable",),
}


class Subject(SerdeContract):
    """The contract for one class of serde."""

    def __init__(self, serde: type[Sound]) -> None:
        self._serde = serde

    def make(self, context: PluginContext) -> Serde:
        return self._serde(JsonOptions(), context)

    def hostile(self) -> Iterable[bytes]:
        return (b"",)


def run(contract: SerdeContract, name: str) -> Exception | None:
    """Run one contract test and return what it failed with."""
    test = getattr(contract, f"test_{name}")
    try:
        test()
    except Exception as error:  # noqa: BLE001 - a broken serde may fail a test in any way
        return error
    return None


CASES = [
    pytest.param(broken, name, id=f"{broken.__name__}-{name}")
    for broken, names in CAUGHT_BY.items()
    for name in names
]


@pytest.mark.parametrize(("broken", "name"), CASES)
def test_a_broken_serde_is_caught(broken: type[Sound], name: str) -> None:
    assert run(Subject(broken), name) is not None


@pytest.mark.parametrize("name", sorted({name for names in CAUGHT_BY.values() for name in names}))
def test_a_sound_serde_is_not(name: str) -> None:
    assert run(Subject(Sound), name) is None


def test_every_test_of_the_contract_has_caught_something() -> None:
    names = {f"test_{name}" for names in CAUGHT_BY.values() for name in names}
    tests = {name for name in dir(SerdeContract) if name.startswith("test_")}
    assert tests - names == set()


class Typed(Sound):
    """Carries datetimes, those without a zone as if they were in UTC should it be broken."""

    zone: ClassVar[Any] = None

    def encode(self, value: Any, context: SerdeContext) -> bytes:
        return super().encode(self._written(value, context), context)

    def decode(self, data: bytes, context: SerdeContext) -> Any:
        return self._read(super().decode(data, context), context)

    def _written(self, value: Any, context: SerdeContext) -> Any:
        if type(value) in {list, tuple}:
            return [self._written(item, context) for item in value]
        if type(value) is datetime:
            return {"$": value.isoformat()}
        if type(value) is dict and "$" not in value:
            return {key: self._written(item, context) for key, item in value.items()}
        if type(value) is dict:
            return {"$": [[key, self._written(item, context)] for key, item in value.items()]}
        return value

    def _read(self, value: Any, context: SerdeContext) -> Any:
        if type(value) is list:
            return [self._read(item, context) for item in value]
        if type(value) is not dict:
            return value
        if "$" not in value:
            return {key: self._read(item, context) for key, item in value.items()}
        if type(value["$"]) is list:
            return {key: self._read(item, context) for key, item in value["$"]}
        moment = datetime.fromisoformat(value["$"])
        return moment.replace(tzinfo=self.zone) if self.zone and not moment.tzinfo else moment


class AddsZones(Typed):
    zone: ClassVar[Any] = UTC


class TypedSubject(Subject):
    """A serde that says it carries datetimes."""

    def values(self) -> st.SearchStrategy[Any]:
        return st.datetimes()


def test_what_a_serde_says_it_carries_has_to_come_back() -> None:
    name = "plain_values_come_back_as_they_are"
    assert run(TypedSubject(Typed), name) is None
    assert run(TypedSubject(AddsZones), name) is not None
    assert run(TypedSubject(Sound), name) is not None
    assert run(Subject(AddsZones), "a_type_comes_back_or_is_named") is not None


def test_a_profile_of_few_values_lets_no_broken_serde_pass() -> None:
    name = "plain_values_come_back_as_they_are"
    before = settings.get_current_profile_name()
    settings.register_profile("few", max_examples=1, phases=[Phase.explicit])
    settings.load_profile("few")
    try:
        assert run(Subject(Sound), name) is None
        assert run(Subject(RoundsNumbers), name) is not None
    finally:
        settings.load_profile(before)


WITHOUT = """
import sys
sys.modules["hypothesis"] = None
import plugq.testing
from plugq.testing import LimiterContract, StorageContract
try:
    from plugq.testing import SerdeContract
except ImportError as error:
    print(error)
"""


def test_only_the_serde_contract_needs_hypothesis_and_says_so_in_a_line() -> None:
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT], check=True, capture_output=True, text=True, timeout=60
    )
    assert run.stdout == "SerdeContract needs Hypothesis; run: pip install 'plugq[testing]'\n"
