"""The verbs of this repository: ``nox -l`` lists them, CONTRIBUTING.md says when to use which.

One interpreter, one place for each command line. The matrix of interpreters and distributions is
tox.ini.
"""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"
nox.options.error_on_external_run = True
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "typing", "imports", "tests"]

ROOT = Path(__file__).parent
DIST = ROOT / "dist"
#: Many tests wait for servers and processes; `-n0` puts all into one process.
PARALLEL = ("--numprocesses=3", "--dist=worksteal")
#: What `mutation` breaks: modules, and the tests that have to notice.
MUTATED = {
    "job": (["job.py"], ["unit/test_job.py", "unit/builtin/test_memory.py"]),
    "retry": (["retry.py"], ["unit/test_retry.py", "unit/worker/test_outcome.py"]),
    "schedule": (
        [f"schedule/{name}.py" for name in ("cron", "expression", "interval", "rule")],
        ["unit/test_schedule.py"],
    ),
}
#: The plugin of somebody outside the project.
EXAMPLE = ROOT / "examples" / "plugq-lmdb"
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/[!_]*/pyproject.toml"))


def project(folder: Path) -> dict[str, str]:
    """Return the [project] table of a distribution."""
    table: dict[str, str] = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    return table


def install(session: nox.Session, *requirements: str) -> None:
    """Install lists of requirements by their names in requirements/."""
    lists = [argument for name in requirements for argument in ("-r", f"requirements/{name}.txt")]
    session.install(*lists)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the test suite against the checkout; arguments go to pytest."""
    install(session, "editable", "test")
    session.run("python", "-m", "pytest", *PARALLEL, *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Run the test suite and report what it did not reach; arguments go to pytest."""
    install(session, "editable", "test")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *PARALLEL, *session.posargs)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session
def soak(session: nox.Session) -> None:
    """Run the long tests under load; arguments go to pytest."""
    install(session, "editable", "test")
    session.run(
        "python",
        *("-m", "pytest", "-m", "soak", "--timeout=0"),
        *session.posargs,
        env={"HYPOTHESIS_PROFILE": "soak"},
    )
    session.run(
        *("python", "-m", "pytest", "plugins", "-k", "workers_die_at_random_moments"),
        *("-m", "", "--timeout=0"),
        env={"PLUGQ_CRASH_KILLS": os.environ.get("PLUGQ_CRASH_KILLS", "200")},
    )


@nox.session
def mutation(session: nox.Session) -> None:
    """Break decisions in every small way and list what no test notices; takes an hour.

    Arguments choose among job, retry and schedule. Works on a copy: a module is broken in place.
    """
    copy = Path(session.create_tmp()) / "checkout"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".nox", ".venv*", "dist"))
    with session.chdir(copy):
        install(session, "editable", "test", "mutation")
        for name in session.posargs or MUTATED:
            modules, suites = MUTATED[name]
            command = "python -m pytest -x -q -p no:randomly -p no:cacheprovider "
            settings = {
                "module-path": [f"core/src/plugq/{module}" for module in modules],
                "timeout": 60.0,
                "test-command": command + " ".join(f"tests/{suite}" for suite in suites),
                "distributor.name": "local",
            }
            # What these values look like in JSON they look like in TOML.
            lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
            Path(f"{name}.toml").write_text("\n".join(["[cosmic-ray]", *lines]), "utf-8")
            session.run("cosmic-ray", "init", f"{name}.toml", f"{name}.sqlite")
            session.run("cosmic-ray", "exec", f"{name}.toml", f"{name}.sqlite")
            session.run("cr-report", f"{name}.sqlite", "--surviving-only", "--show-diff")


@nox.session
def lint(session: nox.Session) -> None:
    """Check format and style."""
    install(session, "lint")
    session.run("ruff", "format", "--check")
    session.run("ruff", "check")


@nox.session
def typing(session: nox.Session) -> None:
    """Check types with mypy, and with pyright what users see."""
    install(session, "editable", "test", "lint")
    session.run("mypy")
    session.run("pyright")
    session.run("pyright", "--ignoreexternal", "--verifytypes", "plugq")


@nox.session
def imports(session: nox.Session) -> None:
    """Check the direction of imports."""
    install(session, "editable", "lint")
    session.run("lint-imports")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; any warning is an error."""
    if not (ROOT / "docs" / "conf.py").exists():
        session.skip("docs/conf.py does not exist")
    install(session, "editable", "docs")
    session.run("sphinx-build", "-n", "-W", "--keep-going", "docs", "docs/_build/html")


@nox.session
def tables(session: nox.Session) -> None:
    """Write the tables of docs/conformance.md anew: which test catches which broken plugin."""
    install(session, "editable", "test")
    session.run("python", "tests/unit/testing/table.py")


@nox.session
def report(session: nox.Session) -> None:
    """Write docs/storages.md anew: the conformance kit on every storage, side by side."""
    install(session, "editable", "test")
    session.run("python", "tests/report.py", *session.posargs)


@nox.session
def readme(session: nox.Session) -> None:
    """Run the Python blocks of the documents, and the README's shell blocks in a clean copy."""
    install(session, "editable", "test")
    documents = ["README.md", "core/README.md"]
    documents += [str((plugin / "README.md").relative_to(ROOT)) for plugin in PLUGINS]
    if (ROOT / "docs").exists():
        documents.append("docs")
    # The blocks of a document build on each other: they run in their order.
    session.run("python", "-m", "pytest", "-p", "no:randomly", "-m", "", *documents, "tests/readme")


@nox.session
def build(session: nox.Session) -> None:
    """Build wheel and sdist of every distribution into dist/."""
    install(session, "release")
    shutil.rmtree(DIST, ignore_errors=True)
    for folder in [ROOT / "core", *PLUGINS]:
        session.run("python", "-m", "build", "--no-isolation", "--outdir", str(DIST), str(folder))


@nox.session(requires=["build"], reuse_venv=False)
def wheels(session: nox.Session) -> None:
    """Install what was built as a user would, run a job with it and look into the files."""
    names = [project(folder)["name"] for folder in [ROOT / "core", *PLUGINS]]
    extras = ",".join(plugin.name for plugin in PLUGINS)
    # First without the index, so that nobody else's distribution of the same name is taken.
    session.install("--no-index", "--no-deps", "--find-links", str(DIST), *names)
    session.install("--find-links", str(DIST), f"plugq[{extras}]")
    session.run("python", "-m", "pip", "check")
    session.run("python", "-I", "tests/packaging/smoke.py")
    # Only now: the test tools bring libraries which would hide an undeclared dependency.
    install(session, "test")
    session.run("python", "-m", "pytest", "-m", "wheels", "tests/packaging")


@nox.session(requires=["build"], reuse_venv=False)
def example(session: nox.Session) -> None:
    """Install the example plugin beside what was built, as its author would, and prove it."""
    folder = Path(session.create_tmp())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    pip = ("python", "-m", "pip")
    session.run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(EXAMPLE))
    # First without the index, so that nobody else's distribution of the same name is taken.
    session.install("--no-index", "--no-deps", "--find-links", str(DIST), "plugq")
    session.install("--find-links", str(DIST), "plugq[testing]", *map(str, folder.glob("*.whl")))
    session.run(*pip, "check")
    listed = session.run("plugq", "plugins", silent=True) or ""
    if EXAMPLE.name not in listed:
        session.error(f"plugq does not find the plugin by its entry point: {listed}")
    session.run("plugq", "conformance", "lmdb")
    # What it has of its own: the contract has just been kept.
    session.run("python", "-m", "pytest", "-k", "not TestLmdb", str(EXAMPLE / "tests"))
    # A copy, as the jobs lie beside their configuration.
    shutil.copy(EXAMPLE / "demo.toml", folder)
    session.run("plugq", "demo", "--config", str(folder / "demo.toml"), "--jobs", "100")


@nox.session
def changelog(session: nox.Session) -> None:
    """Print the changelog of the next release, made of the fragments in changelog.d/."""
    install(session, "release")
    version = project(ROOT / "core")["version"]
    session.run("towncrier", "build", "--draft", "--version", version)


@nox.session
def bench(session: nox.Session) -> None:
    """Run every benchmark in short form; arguments go to benchmarks/run.py instead."""
    install(session, "editable")
    session.run("python", "benchmarks/run.py", *(session.posargs or ("all", "--quick")))
