"""The README's shell blocks, run as a reader would: a clean copy, a fresh environment, in order.

``sh`` and ``bash`` blocks run as scripts. In a ``console`` block every ``$ `` line is run and what
stands below it must appear in its output; ``...`` and ``…`` stand for any text. A command that is
followed by one with the comment ``# second terminal`` goes on running until its block ends. A
``python`` or ``toml`` block below ``<!-- file: NAME -->`` is first written to that file. Folder and
environment carry over from command to command. ``<!-- skip: next -->`` leaves a block out.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytestmark = [pytest.mark.readme, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
PATIENCE = 300.0
BLOCK = re.compile(
    r"(?:^<!--+ *(?P<directive>file|skip): *(?P<argument>\S+) *--+>\s*\n)?"
    r"^```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass
class Block:
    """One fenced block of a document."""

    line: int
    language: str
    text: str
    file: str | None


@dataclass
class Command:
    """One command of a transcript, and what it is said to print."""

    text: str
    expected: list[str] = field(default_factory=list)
    goes_on: bool = False


def blocks(document: str) -> list[Block]:
    return [
        Block(
            line=document.count("\n", 0, match.start("text")) + 1,
            language=match["language"],
            text=match["text"],
            file=match["argument"] if match["directive"] == "file" else None,
        )
        for match in BLOCK.finditer(document)
        if match["directive"] != "skip"
    ]


def commands(transcript: str) -> list[Command]:
    found: list[Command] = []
    for line in transcript.splitlines():
        if line.startswith("$ "):
            if found and "# second terminal" in line:
                found[-1].goes_on = True
            found.append(Command(line.removeprefix("$ ")))
        elif line.strip() and found:
            found[-1].expected.append(line.rstrip())
    return found


def appears(expected: list[str], output: str) -> bool:
    text = "\n".join(line.rstrip() for line in output.splitlines())
    pattern = "\n".join(
        ".*".join(re.escape(part) for part in re.split(r"\.\.\.|…", line)) for line in expected
    )
    return re.search(f"^{pattern}$", text, re.MULTILINE) is not None


class Shell:
    """Runs commands one after the other; each leaves its folder and environment to the next."""

    def __init__(self, folder: Path, environment: dict[str, str], scratch: Path) -> None:
        self._folder = str(folder)
        self._environment = environment
        self._state = scratch / "state"
        self._output = scratch / "output"

    def _start(self, text: str) -> subprocess.Popen[bytes]:
        self._output = self._output.with_suffix(f".{time.monotonic_ns()}")
        script = f"set -euo pipefail\n{text}\n{{ pwd; env -0; }} > '{self._state}'\n"
        with self._output.open("wb") as output:
            return subprocess.Popen(
                ["bash", "-c", script],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, text: str) -> str:
        process = self._start(text)
        try:
            code = process.wait(PATIENCE)
        finally:
            end(process, signal.SIGKILL)
        output = self._output.read_text("utf-8")
        assert code == 0, f"exit code {code} of\n{text}\n{output}"
        folder, _, variables = self._state.read_text("utf-8").partition("\n")
        self._folder = folder
        pairs = (pair.partition("=") for pair in variables.split("\0") if pair)
        self._environment = {name: value for name, _, value in pairs}
        return output

    @contextmanager
    def running(self, command: Command) -> Iterator[None]:
        """Start a command, wait for what it is said to print, and interrupt it at the end."""
        process, output = self._start(command.text), self._output
        try:
            give_up = time.monotonic() + PATIENCE
            while not appears(command.expected, output.read_text("utf-8")):
                alive = process.poll() is None and time.monotonic() < give_up
                assert alive, f"not printed by {command.text}:\n{output.read_text('utf-8')}"
                time.sleep(0.05)  # another program prints: there is nothing to wait on
            yield
            os.killpg(process.pid, signal.SIGINT)
            code = process.wait(60)
            assert code in {0, 130, -signal.SIGINT}, f"{command.text}: exit code {code}"
        finally:
            end(process, signal.SIGKILL)

    def transcript(self, text: str) -> None:
        with ExitStack() as running:
            for command in commands(text):
                if command.goes_on:
                    running.enter_context(self.running(command))
                    continue
                output = self.run(command.text)
                as_written = appears(command.expected, output)
                assert as_written, f"$ {command.text}\nprinted something else:\n{output}"

    def block(self, block: Block) -> None:
        if block.file is not None:
            (Path(self._folder) / block.file).write_text(block.text, "utf-8")
        elif block.language in {"sh", "bash"}:
            self.run(block.text)
        elif block.language == "console":
            self.transcript(block.text)


def end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """End what a command started, also what it left in the background."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
    finally:
        process.wait()


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Give a shell in a copy of what the repository tracks, with an empty environment active."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    copy = tmp_path / "plugq"
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    fresh = tmp_path / "venv"
    venv.create(fresh, with_pip=True)
    removed = {"PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"}
    environment = {name: value for name, value in os.environ.items() if name not in removed}
    environment |= {"VIRTUAL_ENV": str(fresh), "PYTHONUNBUFFERED": "1", "COLUMNS": "120"}
    environment["PATH"] = f"{fresh / 'bin'}{os.pathsep}{environment['PATH']}"
    return Shell(copy, environment, tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="the README's shell is bash")
def test_the_readme_works_as_written(shell: Shell) -> None:
    for block in blocks((ROOT / "README.md").read_text("utf-8")):
        try:
            shell.block(block)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            wrong = f"README.md, block at line {block.line}: {error}"
            break
    else:
        return
    pytest.fail(wrong, pytrace=False)


DOCUMENT = """\
```sh
cd folder
export WORD=hello
```

<!-- skip: next -->
```sh
exit 1
```

<!-- file: note.txt -->
```toml
x = 1
```

```console
$ cat note.txt && echo "$WORD" world
x = 1
hello ...
$ echo ready; exec sleep 600
ready
$ echo done            # second terminal
done
```
"""


def test_blocks_share_folder_environment_and_files(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    shell = Shell(tmp_path, dict(os.environ), tmp_path)
    for block in blocks(DOCUMENT):
        shell.block(block)
    assert (tmp_path / "folder" / "note.txt").read_text("utf-8") == "x = 1\n"


@pytest.mark.parametrize("wrong", ["$ echo one\ntwo", "$ false", "$ true\nsomething"])
def test_a_wrong_transcript_is_caught(wrong: str, tmp_path: Path) -> None:
    shell = Shell(tmp_path, dict(os.environ), tmp_path)
    with pytest.raises(AssertionError):
        shell.transcript(wrong)
