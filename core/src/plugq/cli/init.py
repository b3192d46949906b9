"""``plugq init``: the two files that a deployment begins with."""

from __future__ import annotations

from pathlib import Path

import click

from plugq.cli.failure import FAILED
from plugq.cli.output import note, safe, say
from plugq.config import FILE_NAME
from plugq.registry import Registry

JOBS = "jobs.py"

_HEAD = """\
# Everything that differs between deployments is in this file; the code stays the same.
# `plugq check` looks it over, `plugq config show` prints it with every default.
app = "jobs" # jobs.py, in the folder of this file

"""
_SQLITE = """\
[storage]
use = "sqlite"
path = "jobs.db" # relative to this file; shared by all processes of this machine
# Over many machines: use = "redis" or "postgres", and url; pip install 'plugq[redis]' brings one.
"""
_MEMORY = """\
# Jobs live in the memory of one process. To keep them and to share them between processes:
# pip install 'plugq[sqlite]', then write use = "sqlite" and path = "jobs.db".
[storage]
use = "memory"
"""
_JOBS = '''\
"""The tasks of this application."""

import plugq

app = plugq.App()


@app.task
async def hello(name: str) -> str:
    return f"hello {name}"
'''


@click.command()
@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(file_okay=False))
@click.pass_context
def init(ctx: click.Context, folder: str) -> None:
    """Write plugq.toml and jobs.py, a deployment to start from.

    The jobs are kept in SQLite where plugq-sqlite is installed, else in memory. Files that exist
    are left alone.
    """
    place = Path(folder)
    storages = {info.name for info in Registry().installed("storage")}
    files = {
        place / FILE_NAME: _HEAD + (_SQLITE if "sqlite" in storages else _MEMORY),
        place / JOBS: _JOBS,
    }
    there = [path for path in files if path.exists() or path.is_symlink()]
    if there:
        names = " and ".join(safe(path) for path in there)
        verb = "exists" if len(there) == 1 else "exist"
        note(f"plugq: {names} {verb} already; nothing was written")
        ctx.exit(FAILED)
    place.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    first = "" if folder == "." else f"cd {safe(folder)} && "
    say(f"wrote {', '.join(safe(path) for path in files)}. Next: {first}plugq dev")


__all__ = ["init"]
