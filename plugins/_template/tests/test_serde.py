"""The serde contract, and what is this serde's own."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import pytest

from plugq.errors import PayloadTooLarge
from plugq.protocols import PluginContext, Serde, SerdeContext
from plugq.testing import SerdeContract
from plugq_template import TemplateSerde, TemplateSerdeOptions

SERDE: type[Serde] = TemplateSerde
CONTEXT = SerdeContext(task="mail.send", queue="mail", id="a")


class TestTemplateSerde(SerdeContract):
    def make(self, context: PluginContext) -> Serde:
        return TemplateSerde(TemplateSerdeOptions(), context)

    def hostile(self) -> Iterable[bytes]:
        blanks = b" " * (5 * 2**20)
        return (
            b"\x00" + blanks + b"1",
            b"\x01" + zlib.compress(blanks + b"1"),
            b"\x01" + zlib.compress(b"1")[:-1],
            b"\x01" + zlib.compress(b"1") + b"1",
            b"\x021",
        )


class TestAlwaysCompressed(TestTemplateSerde):
    def make(self, context: PluginContext) -> Serde:
        return TemplateSerde(TemplateSerdeOptions(above=0), context)


def test_what_is_long_is_compressed() -> None:
    serde = TemplateSerde(TemplateSerdeOptions(), PluginContext())
    assert serde.encode("x", CONTEXT) == b'\x00"x"'
    assert len(serde.encode("x" * 100_000, CONTEXT)) < 1_000


def test_what_could_not_be_read_is_not_written() -> None:
    serde = TemplateSerde(TemplateSerdeOptions(most=10), PluginContext())
    with pytest.raises(PayloadTooLarge, match=r"^mail\.send: 12 bytes") as refused:
        serde.encode("x" * 10, CONTEXT)
    assert (refused.value.size, refused.value.limit) == (12, 10)
