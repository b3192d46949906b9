"""A client in a process of its own: ``event_printer.py CONFIG ID COUNT`` prints events as JSON.

It says ``listening`` once it hears everything, then prints the events of that job, and ends after
so many of them.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec

import plugq


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def main(config: str, id: str, count: int) -> None:
    async with plugq.connect(config) as client, client.events(id=id) as stream:
        say("listening")
        for _ in range(count):
            event = await anext(stream)
            say(msgspec.json.encode(event).decode())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
