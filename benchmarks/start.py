"""How long it takes until something works: imports, and a worker that is ready; and its memory.

`import plugq` is measured beside an import of nothing but what plugq depends on, each in a fresh
interpreter and in turn.
"""

from __future__ import annotations

import subprocess
import sys
import time

from figures import Figures
from processes import environment, resident, worker
from settings import Settings
from stores import sqlite

from plugq.assembly import Assembly

#: What plugq imports that is not its own, the standard library included.
DEPENDENCIES = (
    "import asyncio, contextlib, dataclasses, datetime, enum, hashlib, heapq, importlib.metadata, "
    "inspect, logging, random, socket, tomllib, traceback, typing, uuid, zoneinfo, msgspec, pluggy"
)
IMPORTS = {
    "an interpreter": "pass",
    "import of the dependencies": DEPENDENCIES,
    "import plugq": "import plugq",
}
#: Seconds after which a worker that has nothing to do is at rest.
REST = 1.0


def run(settings: Settings) -> Figures:
    figures = Figures("start")
    times = 3 if settings.quick else 15
    store = settings.store or sqlite()
    with settings.folder_for("start") as folder:
        storage = type(Assembly(store.write(folder)).storage())
    package = storage.__module__.partition(".")[0]
    imports = {**IMPORTS, f"import plugq and {package}": f"import plugq, {package}"}
    for _ in range(times):
        for case, statement in imports.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True, env=environment())
            figures.record(case, (time.perf_counter() - began) * 1e3, "ms")
    figures.ratio("import plugq", "import of the dependencies")
    with settings.folder_for("start") as folder:
        config = store.write(folder)
        for _ in range(max(settings.repeat, times // 3)):
            began = time.perf_counter()
            with worker(config) as process:
                figures.record("plugq worker ready", (time.perf_counter() - began) * 1e3, "ms")
                time.sleep(REST)
                memory = resident(process.pid)
                if memory is not None:
                    figures.record("memory of an idle worker", memory, "MiB")
    return figures
