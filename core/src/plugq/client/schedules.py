"""The schedules of a deployment, as everybody who shares its storage sees and changes them."""

from __future__ import annotations

import hashlib
import logging
import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from plugq.client.handle import JobHandle
from plugq.client.views import ScheduleInfo, schedule_view
from plugq.duration import Duration, seconds
from plugq.errors import ConfigError, Conflict, InvalidJob
from plugq.job import JobRef
from plugq.protocols.storage import RegisterChange, SubmitStatus
from plugq.request import Asked
from plugq.schedule import Definition, Stored, changes, check_name, check_words, rule_of
from plugq.schedule.stored import NEWS, PREFIX, encode, key_of, moment_of, read
from plugq.task import JobRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from plugq.client.client import Client
    from plugq.protocols.storage import Register
    from plugq.schedule import CatchUp, Entry, Overlap

logger: logging.Logger = logging.getLogger(__name__)


class Schedules:
    """Lists and changes schedules, for everybody who shares the storage.

    A change is noticed within about a second by the process that runs the schedules. What is
    changed here of a schedule that a file or an application defines lasts until that definition
    is another one. A tick that is being submitted at the moment of a change may still come.

    Every method raises ``Unavailable`` where the storage can not be reached in time. A cancelled
    call may have happened; all but :meth:`trigger` may simply be repeated.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    async def list(self, *, runs: int = 1, removed: bool = False) -> tuple[ScheduleInfo, ...]:
        """Return every schedule by name, each with its next ``runs`` by the storage's time.

        ``removed`` adds those that a file or an application defines and that were removed at run
        time. What can not be read is left out, with an error in the log.

        Raises:
            ValueError: ``runs`` is negative.
        """
        if runs < 0:
            message = f"runs: expected at least 0, got {runs}"
            raise ValueError(message)
        broker = self._client._broker  # noqa: SLF001
        now = (await self._client._ask(lambda: broker.load([NEWS]))).now  # noqa: SLF001
        registers = await self._client._ask(lambda: broker.scan(PREFIX))  # noqa: SLF001
        found = []
        for register in registers:
            stored = read(register)
            if isinstance(stored, str):
                logger.error("%s can not be read: %s", register.key, stored)
            elif removed or not stored.entry.removed:
                found.append(schedule_view(stored, moment_of(now), runs))
        return tuple(found)

    async def put(
        self,
        name: str,
        request: JobRequest[Any],
        *,
        cron: str | None = None,
        every: Duration | None = None,
        timezone: str = "UTC",
        catch_up: CatchUp = "one",
        overlap: Overlap = "skip",
    ) -> None:
        """Create a schedule, or give one another definition.

        The options and arguments of the request are resolved and encoded now, as by
        ``client.submit``: for a task by name with what its workers announce. A new schedule and
        a changed rule count from now; otherwise ticks that are due are still submitted. A paused
        one stays paused. ``catch_up="all"`` needs ``overlap="allow"`` to submit every missed tick:
        those that overlap are left out, and of several only the newest is submitted.

        Raises:
            ConfigError: the rule, ``catch_up`` or ``overlap`` can not be.
            InvalidJob: the name or the request can not be.
            PayloadError: the arguments can not travel.
        """
        check_name(name)
        if not isinstance(request, JobRequest):
            message = f"expected task.job(…), got {request!r}"
            raise InvalidJob(message)
        check_words(catch_up, overlap)
        try:
            interval = None if every is None else seconds(every, name="every")
        except (ValueError, TypeError) as error:
            raise ConfigError(str(error)) from error
        rule = rule_of(cron, interval, timezone)
        (job,) = await self._client._prepare([request], Asked(id=name))  # noqa: SLF001
        definition = Definition(name=name, rule=rule, job=job, catch_up=catch_up, overlap=overlap)

        def change(register: Register | None, now: float) -> bytes:
            stored = None if register is None else read(register)
            held = stored.entry if isinstance(stored, Stored) else None
            return encode(changes.put(held, definition, now))

        await self._change(name, change)

    async def remove(self, name: str) -> None:
        """Remove a schedule; one that a file or an application defines, until that changes it.

        Raises:
            Conflict: there is no such schedule.
        """
        tried = False

        def change(register: Register | None, _: float) -> bytes | None:
            nonlocal tried
            again, tried = tried, True
            if again and register is None:
                # The answer to the first try was lost.
                return None
            if register is not None and isinstance(read(register), str):
                # Whatever it is, nobody here can use it.
                return None
            entry = changes.removed(_existing(name, register).entry)
            return None if entry is None else encode(entry)

        await self._change(name, change)

    async def pause(self, name: str) -> None:
        """Submit nothing until :meth:`resume`; ticks that pass meanwhile are not made up for.

        Raises:
            Conflict: there is no such schedule.
        """
        await self._edit(name, lambda entry, _: changes.paused(entry))

    async def resume(self, name: str) -> None:
        """Let a paused schedule go on from now; another one is left as it is.

        Raises:
            Conflict: there is no such schedule.
        """
        await self._edit(name, changes.resumed)

    async def trigger(self, name: str) -> JobHandle[Any]:
        """Submit the job of a schedule now, once, paused or not, whatever else of it runs.

        The ticks go on as if nothing had happened.

        Raises:
            Conflict: there is no such schedule.
            QueueFull: the queue takes no more; nothing was stored.
            OutcomeUnknown: the answer was lost; the job may be stored.
        """
        client, key = self._client, key_of(check_name(name))
        (register,) = (await client._ask(lambda: client._broker.load([key]))).registers  # noqa: SLF001
        template = _existing(name, register).entry.job
        # Not the form of a tick's id, which is the schedule, '@' and a time.
        id = f"{name}!{uuid.uuid4()}"
        job = msgspec.structs.replace(
            template,
            id=id,
            submission=hashlib.sha256(id.encode()).digest()[:16],
            origin=client._broker.peer,  # noqa: SLF001
        )
        (reply,) = await client._send([job])  # noqa: SLF001
        return JobHandle(
            client,
            JobRef(job.queue, reply.id),
            task=client._deployment.tasks.get(job.task),  # noqa: SLF001
            outcome="accepted" if reply.status is SubmitStatus.ACCEPTED else "duplicate",
            sequence=reply.sequence,
            generation=reply.generation,
        )

    async def _edit(self, name: str, edit: Callable[[Entry, float], Entry]) -> None:
        def change(register: Register | None, now: float) -> bytes:
            return encode(edit(_existing(name, register).entry, now))

        await self._change(name, change)

    async def _change(
        self,
        name: str,
        change: Callable[[Register | None, float], bytes | None],
    ) -> None:
        """Change a register until nobody comes in between, and have that noticed."""
        client, broker = self._client, self._client._broker  # noqa: SLF001
        key = key_of(check_name(name))

        async def attempt() -> bool:
            loaded = await broker.load([key])
            (register,) = loaded.registers
            value = change(register, loaded.now)
            if value == (None if register is None else register.value):
                return True
            expect = 0 if register is None else register.version
            written = RegisterChange(key=key, expect=expect, value=value)
            return (await broker.swap([written])).done

        while not await client._ask(attempt):  # noqa: SLF001
            pass
        # Where it is there already, whoever removes it looks at what was changed before.
        news = RegisterChange(key=NEWS, expect=0, value=b"1")
        await client._ask(lambda: broker.swap([news]))  # noqa: SLF001


def _existing(name: str, register: Register | None) -> Stored:
    """Return a schedule that is there.

    Raises:
        Conflict: it is not, or can not be read.
    """
    stored = None if register is None else read(register)
    if isinstance(stored, str):
        message = f"schedule {name!r} can not be read ({stored}); remove it or put it anew"
        raise Conflict(message)
    if stored is None or stored.entry.removed:
        message = f"there is no schedule {name!r}; `plugq schedules list` names those that are"
        raise Conflict(message)
    return stored


__all__ = ["ScheduleInfo", "Schedules"]
