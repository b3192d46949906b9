"""An operator's changes to many jobs, which are named by handles or by what they have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence  # noqa: TC003 - as below
from datetime import datetime  # noqa: TC003 - TypedDict keeps its annotations for readers
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import msgspec

from plugq.client.handle import JobHandle
from plugq.client.views import Job
from plugq.duration import Duration, seconds, timestamp
from plugq.errors import InvalidJob
from plugq.job import FINAL, JobRef, JobState
from plugq.protocols.storage import FindQuery

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from plugq.protocols.edits import EditReply, JobEdit
    from plugq.protocols.storage import Page

    #: Makes the change of the jobs that it is given, with the conditions as keywords.
    MakeEdit = Callable[..., JobEdit]
    #: A job and its place in the order of submission; 0 where that is not known.
    _Named = tuple[JobRef, int]

#: Jobs that are found and changed in one call.
CHUNK = 1000
#: The states that a job does not stay in.
LIVE: tuple[JobState, ...] = tuple(state for state in JobState if state not in FINAL)
_NAMES = frozenset({"queue", "task", "batch"})


class Filter(TypedDict, total=False):
    """What jobs have in common; what is left out or ``None`` does not matter.

    ``since`` and ``until`` bound the time of submission.
    """

    state: JobState | str | Sequence[JobState | str] | None
    queue: str | None
    task: str | None
    batch: str | None
    since: datetime | None
    until: datetime | None


class Steering:
    """Makes a change to any number of jobs, a thousand in a step."""

    def __init__(
        self,
        find: Callable[[FindQuery], Awaitable[Page]],
        edit: Callable[[JobEdit], Awaitable[Sequence[EditReply]]],
    ) -> None:
        self._find = find
        self._edit = edit

    async def change(
        self,
        make: MakeEdit,
        handles: Sequence[JobHandle[Any] | Job],
        filters: Filter,
        states: Sequence[JobState],
    ) -> list[EditReply]:
        """Make a change and answer for each job that was named or found.

        ``states`` are those of a filter that says nothing about them. A job that matches from the
        call until it is reached is found; one that is submitted meanwhile may be. No handle and
        no filter name no job. Where a ``state`` is given, with handles as well, nothing is done to
        a job that is in another one when it is reached.

        Raises:
            InvalidJob: handles and a filter but ``state`` are given, or one can not be.
        """
        named = named_by(handles)
        query = query_of(filters, limit=CHUNK)
        given = {name: value for name, value in filters.items() if value is not None}
        if named and (given.keys() - {"state"} or not given.get("state", True)):
            raise InvalidJob(f"give handles or a filter, not both; the filter is {_said(given)}")
        make = partial(make, states=query.states)
        replies: list[EditReply] = []
        if named:
            for start in range(0, len(named), CHUNK):
                replies += await self._edit(_of(make, named[start : start + CHUNK]))
        # An empty list of states lets no job through, while for a search it is all of them.
        elif given and given.get("state", True):
            if not query.states:
                query = msgspec.structs.replace(query, states=tuple(states))
            async with contextlib.aclosing(self._found(query)) as walk:
                async for found in walk:
                    replies += await self._edit(_of(make, found))
        return replies

    async def _found(self, query: FindQuery) -> AsyncGenerator[Sequence[_Named], None]:
        """Walk through what matches, so many at a time; pages may be short or empty."""
        found: list[_Named] = []
        cursor: str | None = None
        while True:
            page = await self._find(_at(query, cursor))
            found += [(JobRef(job.queue, job.id), job.sequence) for job in page.jobs]
            cursor = page.cursor
            while len(found) >= CHUNK or (found and cursor is None):
                yield found[:CHUNK]
                del found[:CHUNK]
            if cursor is None:
                return


def query_of(filters: Filter, *, limit: int, cursor: str | None = None) -> FindQuery:
    """Return the search for the jobs of a filter.

    Raises:
        InvalidJob: it says what no job can have, or has a name that is none.
    """
    for name in filters:
        if name not in Filter.__annotations__:
            known = ", ".join(Filter.__annotations__)
            raise InvalidJob(f"{name}: there is no such filter; use one of {known}")
        if name in _NAMES and not isinstance(filters.get(name), str | None):
            raise InvalidJob(f"{name}: expected a name, got {filters.get(name)!r}")
    state = filters.get("state")
    states = [] if state is None else [state] if isinstance(state, str) else list(state)
    return FindQuery(
        states=tuple(map(_state, states)),
        queue=filters.get("queue"),
        task=filters.get("task"),
        batch=filters.get("batch"),
        since=_moment("since", filters.get("since")),
        until=_moment("until", filters.get("until")),
        limit=limit,
        cursor=cursor,
    )


def named_by(handles: Sequence[JobHandle[Any] | Job]) -> list[_Named]:
    """Return which jobs are named.

    Raises:
        InvalidJob: one is neither a handle nor a job.
    """
    for handle in handles:
        if not isinstance(handle, JobHandle | Job):
            raise InvalidJob(f"expected handles or jobs, got {handle!r}")
    return [(JobRef(handle.queue, handle.id), handle.sequence) for handle in handles]


def ttl_of(value: Duration | Literal["forever"] | None) -> float | None:
    """Return how long a job is to be kept, in seconds; ``None`` is for ever.

    Raises:
        InvalidJob: it is no duration.
    """
    if value is None or value == "forever":
        return None
    try:
        return seconds(value, name="ttl")
    except (TypeError, ValueError) as error:
        raise InvalidJob(str(error)) from error


def _of(make: MakeEdit, named: Sequence[_Named]) -> JobEdit:
    refs, sequences = zip(*named, strict=True)
    return make(refs, sequences=sequences)


def _moment(name: str, value: datetime | None) -> float | None:
    try:
        return None if value is None else timestamp(value, name=name)
    except (TypeError, ValueError) as error:
        raise InvalidJob(str(error)) from error


def _at(query: FindQuery, cursor: str | None) -> FindQuery:
    return query if cursor is None else msgspec.structs.replace(query, cursor=cursor)


def _said(given: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in given.items())


def _state(name: JobState | str) -> JobState:
    try:
        return JobState(name)
    except ValueError:
        known = ", ".join(JobState)
        raise InvalidJob(f"state: {name!r} is none; use one of {known}") from None


__all__ = ["CHUNK", "LIVE", "Filter", "Steering", "named_by", "query_of", "ttl_of"]
