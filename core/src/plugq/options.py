"""The options of a submission, as each layer that may set them holds them.

The layers are the call, the request, ``[tasks."NAME"]``, the task, ``[queues.NAME]``,
``[defaults]`` and :data:`BUILT_IN`, the first that sets an option counts.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from plugq.fields import Check, Span, Word
from plugq.retry import RetryPolicy

LOWEST_PRIORITY = -1000
HIGHEST_PRIORITY = 1000
#: A limit of 0 would end every job at once, and is written by those who mean "none".
_SHORTEST = 0.001


def _attempts(value: int) -> str | None:
    if value >= 1:
        return None
    return f"expected a whole number of at least 1 (1 means no retry), got {value}"


class SubmitOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options that one layer sets; what it leaves to the next one is ``msgspec.UNSET``.

    Durations are seconds. ``None`` means no deadline, no timeout, no lane, and for the ttls of
    results and failures for ever. ``max_attempts`` alone replaces that number in the ``retry``
    that applies; one layer sets at most one of the two.
    """

    queue: Annotated[str | UnsetType, msgspec.Meta(min_length=1)] = UNSET
    priority: Annotated[int | UnsetType, msgspec.Meta(ge=LOWEST_PRIORITY, le=HIGHEST_PRIORITY)] = (
        UNSET
    )
    delay: Annotated[float | UnsetType, Span()] = UNSET
    deadline: Annotated[float | UnsetType | None, Span(_SHORTEST), Word("none")] = UNSET
    timeout: Annotated[float | UnsetType | None, Span(_SHORTEST), Word("none")] = UNSET
    max_attempts: Annotated[int | UnsetType, Check(_attempts)] = UNSET
    retry: RetryPolicy | UnsetType = UNSET
    lane: Annotated[str | UnsetType | None, Word("none"), msgspec.Meta(min_length=1)] = UNSET
    headers: dict[str, str] | UnsetType = UNSET
    result_ttl: Annotated[float | UnsetType | None, Span(), Word("forever")] = UNSET
    failure_ttl: Annotated[float | UnsetType | None, Span(), Word("forever")] = UNSET
    id_ttl: Annotated[float | UnsetType, Span()] = UNSET

    def __post_init__(self) -> None:
        """Refuse two answers to one question."""
        if self.max_attempts is not UNSET and self.retry is not UNSET:
            message = "max_attempts: give it inside `retry`, or give no `retry` beside it"
            raise ValueError(message)

    def given(self) -> dict[str, Any]:
        """Return the options that this layer sets, by name."""
        return {
            name: value
            for name in SubmitOptions.__struct_fields__
            if (value := getattr(self, name)) is not UNSET
        }


#: What applies where no layer says otherwise.
BUILT_IN = SubmitOptions(
    queue="default",
    priority=0,
    delay=0.0,
    deadline=None,
    timeout=None,
    retry=RetryPolicy(),
    lane=None,
    headers={},
    result_ttl=3600.0,
    failure_ttl=604800.0,
    id_ttl=600.0,
)

__all__ = ["BUILT_IN", "HIGHEST_PRIORITY", "LOWEST_PRIORITY", "SubmitOptions"]
