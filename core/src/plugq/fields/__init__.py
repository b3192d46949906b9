"""Tables of untyped values read into structs, with one line for each thing that is wrong.

A struct says what it takes by its annotations, refined by ``msgspec.Meta`` and by the marks of
this package. :class:`Reader` goes on after a mistake, so that all of them are reported at once, and
every line starts with the path of the value: ``storage.pth: unknown option, did you mean 'path'?``
"""

from plugq.fields.marks import Check, EnvText, Size, Span, Word, plain, toml_value
from plugq.fields.reader import InvalidConfig, Reader
from plugq.fields.wording import describe, join, suggestion

__all__ = [
    "Check",
    "EnvText",
    "InvalidConfig",
    "Reader",
    "Size",
    "Span",
    "Word",
    "describe",
    "join",
    "plain",
    "suggestion",
    "toml_value",
]
