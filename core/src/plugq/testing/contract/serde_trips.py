"""What a serde declares, and that what it carries comes back."""

from __future__ import annotations

import copy
import inspect
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import msgspec

from plugq.errors import Undecodable
from plugq.protocols.plugin import API_VERSION, Capability
from plugq.protocols.serde import SerdeContext
from plugq.testing.contract.serde_subject import (
    CONTEXT,
    LEVELS,
    SerdeSubject,
    each,
    nested,
    same,
    there_and_back,
)

#: A token of RFC 9110.
_NAME = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_MEDIA_TYPE = re.compile(rf'{_NAME}/{_NAME}(?:; ?{_NAME}=(?:{_NAME}|"[^"\\]*"))*')

_EDGES: tuple[Any, ...] = (
    None,
    False,
    0,
    -(2**63),
    2**53 + 1,
    2**63,
    2**64 - 1,
    0.0,
    -0.0,
    1.0,
    0.1,
    5e-324,
    -2.2250738585072009e-308,
    1.7976931348623157e308,
    "",
    "\x00",
    "a\x00b",
    "1",
    "null",
    "\U0001f600\U0010ffff",
    "e\u0301",
    "\u00e9",
    "\u2028\u202e\ufeff\uffff",
    "\r\n",
    "x" * 100_000,
    [],
    {},
    [[], {}, [[]], {"": {}}],
    {"b": 1, "a": 2, "": 3, "\x00": 4},
    list(range(10_000)),
    {str(number): number for number in range(1_000)},
)

_CONTEXTS = (
    CONTEXT,
    SerdeContext(task="mail.drop", queue="mail", id="a"),
    SerdeContext(task="mail.send", queue="post", id="a"),
    SerdeContext(task="mail.send", queue="mail", id="b"),
    SerdeContext(task="\x00", queue="\U0001f600", id="\n" * 1_024),
)


class Declared(SerdeSubject):
    """What the registry reads of the class."""

    def test_it_is_of_this_plugin_api(self) -> None:
        """As every plugin says."""
        assert type(self.serde()).api_version == API_VERSION

    def test_its_content_type_is_a_media_type(self) -> None:
        """It travels with each job, and is the same for all that this class writes."""
        serde = self.serde()
        assert _MEDIA_TYPE.fullmatch(serde.content_type)
        assert self.serde().content_type == serde.content_type

    def test_its_capabilities_are_of_the_list(self) -> None:
        """None, as a rule."""
        capabilities = getattr(type(self.serde()), "capabilities", None)
        assert isinstance(capabilities, frozenset)
        assert all(isinstance(capability, Capability) for capability in capabilities)

    def test_its_options_are_named_and_known(self) -> None:
        """A typing error in the configuration is an error."""
        options = getattr(type(self.serde()), "Options", None)
        assert isinstance(options, type)
        assert issubclass(options, msgspec.Struct)
        assert options.__struct_config__.forbid_unknown_fields
        kinds = {parameter.kind for parameter in inspect.signature(options).parameters.values()}
        assert kinds <= {inspect.Parameter.KEYWORD_ONLY}


class Trips(SerdeSubject):
    """There and back."""

    def test_plain_values_come_back_as_they_are(self) -> None:
        """Equal, of the same types and in the same order, and so do those of ``values()``."""
        serde = self.serde()

        def check(value: Any) -> None:
            assert same(value, there_and_back(serde, value))

        each(self.carried(), check)

    def test_edges_of_numbers_and_texts_come_back_exactly(self) -> None:
        """Alone and inside."""
        serde = self.serde()
        for value in _EDGES:
            for whole in (value, [value], {"k": value}):
                assert same(whole, there_and_back(serde, whole))

    def test_arguments_come_back(self) -> None:
        """A job's are a tuple of a tuple and a dictionary; a tuple may come back as a list."""
        serde = self.serde()
        several: tuple[Any, ...] = (((), {}), ((1, "a", (2.0, ())), {"q": (None,), "p": [True]}))
        for arguments in several:
            assert same(arguments, there_and_back(serde, arguments))

    def test_some_nesting_is_carried(self) -> None:
        """32 levels."""
        serde = self.serde()
        for mapped in (False, True):
            value = nested(LEVELS, mapped=mapped)
            assert same(value, there_and_back(serde, value))

    def test_what_it_makes_is_bytes(self) -> None:
        """No subclass, and nothing that somebody could change."""
        serde = self.serde()
        for value in _EDGES:
            assert type(serde.encode(value, CONTEXT)) is bytes

    def test_the_value_is_not_changed(self) -> None:
        """It is the caller's."""
        serde = self.serde()

        def check(value: Any) -> None:
            before = copy.deepcopy(value)
            serde.encode(value, CONTEXT)
            assert same(before, value)

        each(self.carried(), check)

    def test_what_was_decoded_is_nobody_elses(self) -> None:
        """Each attempt of a job gets arguments of its own."""
        serde = self.serde()
        data = serde.encode([[1], {"k": [2]}], CONTEXT)
        first = serde.decode(data, CONTEXT)
        first[0].append(3)
        first[1]["k"].append(3)
        assert same([[1], {"k": [2]}], serde.decode(data, CONTEXT))


class Sharing(SerdeSubject):
    """Other processes, other threads, other jobs."""

    def test_another_instance_can_decode(self) -> None:
        """Producer and worker are two processes."""
        for value in _EDGES:
            data = self.serde().encode(["a", value, "a"], CONTEXT)
            assert same(["a", value, "a"], self.serde().decode(data, CONTEXT))

    def test_every_context_is_taken(self) -> None:
        """Whatever text names the job."""
        serde = self.serde()
        for context in _CONTEXTS:
            assert same([1, "a"], serde.decode(serde.encode([1, "a"], context), context))

    def test_bytes_of_another_job_are_decoded_or_refused(self) -> None:
        """By ``Undecodable``, should the serde bind them to their job."""
        serde = self.serde()
        for theirs in _CONTEXTS:
            data = serde.encode([1, "a"], theirs)
            for context in _CONTEXTS:
                try:
                    back = serde.decode(data, context)
                except Undecodable:
                    assert context != theirs
                else:
                    assert same([1, "a"], back)

    def test_threads_share_an_instance(self) -> None:
        """Each gets back what it put in."""
        serde = self.serde()
        threads = 6
        together = Barrier(threads, timeout=60)

        def run(number: int) -> bool:
            value = {"of": number, "items": [f"{number}.{item}" for item in range(20)]}
            together.wait()
            return all(same(value, there_and_back(serde, value)) for _ in range(200))

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            with ThreadPoolExecutor(threads) as pool:
                assert list(pool.map(run, range(threads))) == [True] * threads
        finally:
            sys.setswitchinterval(interval)


__all__ = ["Declared", "Sharing", "Trips"]
