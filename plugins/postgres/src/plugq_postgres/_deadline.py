"""What ends the use of a connection whose network has swallowed the answer."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import asyncpg

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def cut_off(db: Any, seconds: float) -> Iterator[None]:
    """Cut a connection off when it has been used for so long.

    Whatever waits on it goes on then. To cancel it would not do: the rollback that follows would
    wait for the same network, and nothing would end that.

    Raises:
        TimeoutError: it was cut off.
    """
    late = False

    def cut() -> None:
        nonlocal late
        late = True
        with contextlib.suppress(asyncpg.InterfaceError):
            db.terminate()

    timer = asyncio.get_running_loop().call_later(seconds, cut)
    try:
        yield
    except Exception as error:
        if late:
            raise TimeoutError from error
        raise
    finally:
        timer.cancel()
