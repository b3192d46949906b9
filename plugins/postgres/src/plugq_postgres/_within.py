"""Submissions in a transaction of the user's own: one statement on the user's connection."""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any

from plugq.errors import InvalidJob, OutcomeUnknown, Unavailable
from plugq_postgres import _submit
from plugq_postgres._drivers import Driver, Unusable, driver
from plugq_postgres._packets import wake

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from plugq.protocols.storage import NewJob, SubmitReply
    from plugq_postgres._database import Database

#: The columns of the answer, and the types of the arguments, in order.
_ANSWER = ("now", "statuses", "ids", "states", "seqs", "generations")
_TYPES = (
    *("int4", "bytea", "float8", "bytea[]", "int4[]", "int4[]", "bool"),
    *("bytea[]", "bytea[]", "bytea[]", "bytea[]", "bytea[]", "int8[]", "float8[]", "float8[]"),
    *("float8[]", "float8[]", "int8[]", "bytea[]", "bytea[]", "int2[]", "float8[]", "bytea[]"),
    *("float8[]", "float8[]", "float8[]", "float8[]", "bytea[]"),
)
#: Whether the function is there, and whether the connection's role may call it. Asked for by the
#: catalogue, since to call what is not there would end the user's transaction.
_LOOK = (
    "SELECT p.oid IS NOT NULL, pg_catalog.has_schema_privilege(n.oid, 'USAGE') "
    "AND coalesce(pg_catalog.has_function_privilege(p.oid, 'EXECUTE'), true) "
    "FROM pg_catalog.pg_namespace n LEFT JOIN pg_catalog.pg_proc p "
    "ON p.pronamespace = n.oid AND p.proname = 'submit_within_v1' WHERE n.nspname = {}::text"
)
_ROLLBACK = "roll the transaction back"
#: What an error of the server means, by its state or the class of that.
_REFUSED = {
    "25006": "its transaction is read only; roll it back",
    "25P02": "its transaction has failed before; roll it back",
    "42501": "its role may not submit; grant it what the README names",
}
_FAILED = {
    "57014": "the statement_timeout of the connection has passed",
    "55P03": "the lock_timeout of the connection has passed",
    "40001": "the server could not serialise the transaction",
    "40P01": "the server found a deadlock",
    "53100": "its disk is full; free some space",
}
_OTHER_STORE = {"42883", "42P01", "3F000"}


class Within:
    """Submits in transactions of users, as they were begun on their connections."""

    def __init__(self, database: Database, namespace: str) -> None:
        self._database = database
        self._name = namespace.encode()
        self._wake = wake()
        #: Connections on which the function was found.
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    async def submit(self, connection: object, jobs: Sequence[NewJob]) -> list[SubmitReply]:
        """Store jobs in the transaction of a connection and answer for each.

        Raises:
            InvalidJob: the connection can not be used, or a job can not be stored.
            Unavailable: nothing is stored, and the transaction has to be rolled back.
            OutcomeUnknown: it may be stored, and the transaction has to be rolled back.
        """
        try:
            async with asyncio.timeout(self._database.deadline):
                user = await driver(connection)
                if user.key not in self._known:
                    await self._look(user)
                row = await self._call(user, jobs)
        except (InvalidJob, Unavailable):
            raise
        except Unusable as error:
            message = f"connection: {error}"
            raise InvalidJob(message) from error.__cause__
        except Exception as error:
            raise self._fault(error) from error
        answer = dict(zip(_ANSWER, row, strict=True))
        if answer["now"] is None:
            raise self._elsewhere()
        self._database.now(answer["now"])
        answer["ids"] = None if answer["ids"] is None else [bytes(id_) for id_ in answer["ids"]]
        return _submit.replies(jobs, answer)

    async def _look(self, user: Driver) -> None:
        row = await user.fetch(_LOOK.format(user.mark(1)), [self._database.schema_name])
        if row is None or not row[0]:
            raise self._elsewhere()
        if not row[1]:
            message = f"connection: {_REFUSED['42501']}"
            raise InvalidJob(message)
        self._known.add(user.key)

    async def _call(self, user: Driver, jobs: Sequence[NewJob]) -> Sequence[Any]:
        database = self._database
        queues = {job.queue: job.queue.encode() for job in jobs}
        tasks = {job.task: job.task.encode() for job in jobs}
        values = (
            database.namespace,
            self._name,
            database.at,
            self._wake,
            _before((job.queue, job.id) for job in jobs),
            _before(None if job.unique is None else (job.queue, job.unique.key) for job in jobs),
            *_submit.arguments(jobs, queues, tasks),
        )
        marks = ", ".join(f"{user.mark(place)}::{kind}" for place, kind in enumerate(_TYPES, 1))
        schema = user.literal(database.schema)
        row = await user.fetch(f"SELECT * FROM {schema}.submit_within_v1({marks})", values)  # noqa: S608 - a quoted name
        assert row is not None  # noqa: S101 - it is a call of a function
        return row

    def _elsewhere(self) -> InvalidJob:
        return InvalidJob(
            f"connection: it does not lead to this storage, schema {self._database.schema_name!r} "
            f"of {self._database.server}; connect to that database"
        )

    def _fault(self, error: Exception) -> Exception:
        state = _state(error)
        text = " ".join(str(error).split()) or "no reason given"
        server = self._database.server
        if state in _REFUSED:
            ended = "" if "roll it back" in _REFUSED[state] else f"; {_ROLLBACK}"
            return InvalidJob(f"connection: {_REFUSED[state]}{ended}")
        if state in _OTHER_STORE:
            return self._elsewhere()
        if state in _FAILED:
            return Unavailable(f"{server}: {_FAILED[state]}; {_ROLLBACK}")
        if state.startswith("22"):
            return InvalidJob(f"a value can not be stored in PostgreSQL: {text}; {_ROLLBACK}")
        if isinstance(error, TimeoutError):
            # The statement may have come to its end since, and the transaction be whole.
            return OutcomeUnknown(f"{server} did not answer in time; {_ROLLBACK}")
        return Unavailable(f"{server}: {type(error).__name__}: {text}; {_ROLLBACK}")


def _before(keys: Iterable[Hashable]) -> list[int]:
    """Return for each key the place, from 1 on, where it stood last; 0 where it is new or none."""
    places: dict[Hashable, int] = {}
    found: list[int] = []
    for place, key in enumerate(keys, 1):
        found.append(0 if key is None else places.get(key, 0))
        places[key] = place
    return found


def _state(error: BaseException | None) -> str:
    """Return the state that the server gave an error, which a driver may have wrapped."""
    while error is not None:
        for attribute in ("sqlstate", "pgcode"):
            state = getattr(error, attribute, None)
            if isinstance(state, str):
                return state
        error = getattr(error, "orig", None) or error.__cause__
    return ""
