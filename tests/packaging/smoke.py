"""Runs one job with what is installed, and nothing else: the check of a fresh installation.

Needs neither pytest nor the checkout, so that a library which only the test tools bring is missed.
"""

import asyncio
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from tempfile import TemporaryDirectory

import plugq

app = plugq.App()


@app.task("add")
async def add(left: int, right: int) -> int:
    """Return the sum, as a job would."""
    return left + right


def load_every_plugin() -> None:
    """Import what the entry points of the installed distributions name."""
    groups = [group for group in entry_points().groups if group.startswith("plugq.")]
    for group in sorted(groups):
        for entry_point in entry_points(group=group):
            entry_point.load()
            sys.stdout.write(f"{group}: {entry_point.name} ({entry_point.value})\n")


async def run_a_job(storage: dict[str, object]) -> None:
    """Submit a job to a storage and wait for its result."""
    async with app.running({"storage": storage}) as client:
        answer = await client.call(add.job(2, 3), timeout="30s")
    if answer != 5:
        sys.exit(f"{storage}: the job answered {answer!r} instead of 5")
    sys.stdout.write(f"{storage['use']}: a job ran\n")


def main() -> None:
    """Load every plugin, run the command, run a job in memory and one in a file."""
    load_every_plugin()
    command = Path(sys.executable).with_name("plugq")
    subprocess.run([command, "--help"], check=True, stdout=subprocess.DEVNULL, timeout=60)
    asyncio.run(run_a_job({"use": "memory"}))
    with TemporaryDirectory() as folder:
        asyncio.run(run_a_job({"use": "sqlite", "path": str(Path(folder) / "jobs.db")}))


main()
