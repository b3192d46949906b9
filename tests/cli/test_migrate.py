"""``plugq migrate`` over SQLite, and over a storage that has nothing to migrate."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.cli.conftest import Invoke, Shell

MEMORY = '[storage]\nuse = "memory"\n'


def test_a_storage_without_a_layout_needs_none(shell: Shell, invoke: Invoke) -> None:
    shell.write("plugq.toml", MEMORY)
    said = "storage 'memory' needs no migrations\n"
    assert (invoke("migrate").output, invoke("migrate", "--check").output) == (said, said)
    script = invoke("migrate", "--sql").output
    assert script == f"-- {said}"
    sqlite3.connect(":memory:").executescript(script)
    found = json.loads(invoke("migrate", "--json").output)
    assert found == {"storage": "memory", "migrations": False, "pending": False}


def test_a_file_is_looked_at_and_migrated(shop: Shell, invoke: Invoke) -> None:
    looked = invoke("migrate", "--check")
    assert looked.exit_code == 1
    assert "nothing yet, version 2 is pending; run plugq migrate" in looked.output
    assert not (shop.folder / "jobs.db").exists()
    applied = invoke("migrate")
    assert applied.exit_code == 0
    assert applied.output == "sqlite jobs.db: version 0 -> 2\n"
    assert invoke("migrate").output == "sqlite jobs.db: version 2 already, nothing is pending\n"
    assert invoke("migrate", "--check").exit_code == 0
    document = json.loads(invoke("migrate", "--check", "--json").output)
    assert document == {
        "storage": "sqlite",
        "migrations": True,
        "pending": False,
        "before": 2,
        "version": 2,
        "newest": 2,
    }


def test_the_script_makes_what_migrating_makes(shop: Shell, invoke: Invoke) -> None:
    """It is printed without a look at the file, and may begin where a file stands."""
    whole = invoke("migrate", "--sql").output
    assert not (shop.folder / "jobs.db").exists()
    assert invoke("migrate").exit_code == 0

    def tables(*scripts: str) -> list[tuple[str, str]]:
        with closing(sqlite3.connect(":memory:")) as db:
            for script in scripts:
                db.executescript(script)
            return found(db)

    def found(db: sqlite3.Connection) -> list[tuple[str, str]]:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)
        rows = db.execute("SELECT name, coalesce(sql, '') FROM sqlite_schema ORDER BY name")
        return [(name, " ".join(sql.split())) for name, sql in rows]

    with closing(sqlite3.connect(shop.folder / "jobs.db")) as db:
        there = found(db)
    assert tables(whole) == there
    rest = json.loads(invoke("migrate", "--sql", "--since", "1", "--json").output)["sql"]
    assert "CREATE TABLE job (" in whole
    assert "CREATE TABLE job (" not in rest
    first = whole.partition("ALTER TABLE")[0] + "COMMIT;"
    assert tables(first, rest) == there


def test_contradictions_and_strange_files_are_mistakes(shop: Shell) -> None:
    for arguments, said in (
        (["--sql", "--check"], "give one of them"),
        (["--since", "1"], "--since is for --sql"),
    ):
        run = shop.run("migrate", *arguments)
        assert run.returncode == 2
        assert said in run.stderr
    with closing(sqlite3.connect(shop.folder / "jobs.db")) as db:
        db.execute("CREATE TABLE theirs (x)")
    for arguments in ([], ["--check"]):
        run = shop.run("migrate", *arguments)
        assert run.returncode == 2
        assert run.stderr.count("\n") == 1
        assert "the database of another application" in run.stderr


def test_check_says_what_the_storage_keeps(shop: Shell, invoke: Invoke) -> None:
    checked = invoke("check")
    assert checked.exit_code == 0
    assert "\nkeeps   what was acknowledged survives a loss of power" in checked.output
    shop.write("plugq.toml", MEMORY)
    document = json.loads(invoke("check", "--json").stdout)
    facts = [{"name": "keeps", "text": "nothing outlasts this process", "warning": False}]
    assert document == {"problems": [], "storage": {"use": "memory", "facts": facts}}
