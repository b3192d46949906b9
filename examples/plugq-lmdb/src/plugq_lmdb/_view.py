"""The store as one transaction sees it: records by key, in the order of their keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from plugq_lmdb import _keys
from plugq_lmdb._records import Job, Meta, Queue

if TYPE_CHECKING:
    from collections.abc import Iterator

    import lmdb

R = TypeVar("R", bound=msgspec.Struct)

encode = msgspec.msgpack.Encoder().encode
_decoders: dict[type[msgspec.Struct], msgspec.msgpack.Decoder[Any]] = {}


def decode(data: bytes, kind: type[R]) -> R:
    """Return the record that was encoded."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    record: R = decoder.decode(data)
    return record


class View:
    """Reads what is stored; ``now`` is the storage's time, which no earlier view has been past."""

    def __init__(self, txn: lmdb.Transaction[bytes], now: float) -> None:
        self.txn = txn
        #: What was read of each key, and the record as it is to be stored.
        self._held: dict[bytes, tuple[bytes | None, msgspec.Struct | None]] = {}
        self._queues: dict[str, Queue] = {}
        self.meta: Meta = self.held(_keys.META, Meta) or Meta()
        self.now: float = max(now, self.meta.now)

    def held(self, key: bytes, kind: type[R]) -> R | None:
        """Return a record, the same object whenever it is asked for; ``None`` if there is none."""
        slot = self._held.get(key)
        if slot is None:
            raw = self.txn.get(key)
            slot = self._held[key] = (raw, None if raw is None else decode(raw, kind))
        record: Any = slot[1]
        return record  # type: ignore[no-any-return]

    def keys(self, prefix: bytes, start: bytes = b"") -> Iterator[bytes]:
        """Return what follows the prefix in each key that has it, from ``start`` on."""
        cursor = self.txn.cursor()
        if cursor.set_range(prefix + start):
            for key in cursor.iternext(keys=True, values=False):
                if not key.startswith(prefix):
                    return
                yield key[len(prefix) :]

    def first(self, prefix: bytes, start: bytes = b"") -> bytes | None:
        """Return what follows the prefix in the first key that has it."""
        return next(self.keys(prefix, start), None)

    def backwards(self, prefix: bytes, below: int | None) -> Iterator[int]:
        """Return the sequences that follow the prefix, from the highest below a bound down."""
        cursor = self.txn.cursor()
        end = prefix + (b"\xff" * 9 if below is None else _keys.number(below))
        if cursor.prev() if cursor.set_range(end) else cursor.last():
            for key in cursor.iterprev(keys=True, values=False):
                if not key.startswith(prefix):
                    return
                yield _keys.number_in(key, len(prefix))

    def queues(self) -> list[Queue]:
        """Return every queue."""
        found = [self.held(_keys.QUEUE + key, Queue) for key in list(self.keys(_keys.QUEUE))]
        return [queue for queue in found if queue is not None]

    def find_queue(self, name: str) -> Queue | None:
        """Return a queue that has been mentioned before."""
        queue = self._queues.get(name)
        if queue is None:
            queue = self.held(_keys.QUEUE + _keys.digest(name), Queue)
            if queue is not None:
                self._queues[name] = queue
        return queue

    def find_job(self, queue: str, id: str) -> Job | None:
        """Return a job by its name, also one whose retention has passed."""
        home = self.find_queue(queue)
        if home is None:
            return None
        data = self.txn.get(id_key(home, id))
        return None if data is None else self.job(_keys.number_in(data, 0))

    def job(self, sequence: int) -> Job:
        """Return the job that an index names."""
        job = self.held(_keys.JOB + _keys.number(sequence), Job)
        if job is None:
            raise LookupError(f"an index names job {sequence}, which is not stored")
        return job

    def blob(self, table: bytes, job: Job) -> bytes | None:
        """Return the body or the result of a job."""
        return self.txn.get(table + _keys.number(job.sequence))


def id_key(queue: Queue, id: str) -> bytes:
    """Return the key by which a job is found."""
    return _keys.ID + _keys.short(queue.number) + _keys.digest(id)
