"""The benchmarks: ``python benchmarks/run.py [NAME …] [--jobs N] [--repeat N] [--storage NAME] …``.

Names are drain, finished, lanes, idle, wake, start and all, which is the default. README.md says
what each figure means. Figures of one run may be compared with each other, those of two machines
may not.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
from pathlib import Path

from figures import machine
from settings import Settings
from stores import Store, chosen

NAMES = ("drain", "finished", "lanes", "idle", "wake", "start")


def disk() -> Path:
    """Return where files may lie; what is kept in memory there would make every fsync free."""
    lasting = Path("/var/tmp")  # noqa: S108 - only a place for new folders of our own
    return lasting if lasting.is_dir() else Path(tempfile.gettempdir())


def store_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Store | None:
    if options.storage is None:
        if options.set:
            parser.error("--set is an option of the storage that --storage names")
        return None
    try:
        return chosen(options.storage, options.label, options.set)
    except ValueError as error:
        parser.error(f"--set: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure plugq.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join((*NAMES, "all")))
    parser.add_argument("--jobs", type=int, help="how many jobs (drain, finished, lanes)")
    parser.add_argument("--processes", type=int, help="how many idle processes (wake)")
    parser.add_argument("--repeat", type=int, help="how many runs (default 3; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--folder", type=Path, default=disk(), help="where the files lie")
    parser.add_argument("--storage", metavar="NAME", help="measure this one, as [storage] use")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of it; {name} stands for a new name, {folder} for the folder",
    )
    parser.add_argument("--label", help="what the figures call it")
    options = parser.parse_args()
    if wrong := set(options.names) - {*NAMES, "all"}:
        parser.error(f"no benchmark {min(wrong)!r}; there are {', '.join(NAMES)}")
    names = NAMES if not options.names or "all" in options.names else options.names
    settings = Settings(
        jobs=options.jobs,
        processes=options.processes,
        repeat=options.repeat or (1 if options.quick else 3),
        quick=options.quick,
        folder=options.folder,
        store=store_of(parser, options),
    )
    lines = [machine(settings.folder)]
    print(json.dumps(lines[0]), flush=True)
    for name in names:
        figures = importlib.import_module(name).run(settings)
        figures.show()
        lines += figures.lines()
    if options.json:
        options.json.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


if __name__ == "__main__":
    main()
