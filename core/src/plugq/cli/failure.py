"""How a command ends: its exit code, and one line on standard error that says why.

0 is done, 1 is failed, 2 is a mistake in the call or in the configuration, 130 is Ctrl-C. With
``PLUGQ_DEBUG=1`` the traceback is shown as well.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from typing import TYPE_CHECKING, TextIO

import click

from plugq.cli.output import note, safe, safe_lines
from plugq.errors import (
    ConfigError,
    InvalidJob,
    PayloadError,
    PluginError,
    PlugqError,
    Undecodable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

FAILED = 1
MISTAKE = 2
INTERRUPTED = 130

#: Raised by click 8.2 and later where a group is called without a command.
_HELP = getattr(click.exceptions, "NoArgsIsHelpError", ())
#: What the caller has to change, while the deployment is in order.
_MISTAKES = (ConfigError, PluginError, InvalidJob, PayloadError)


def exit_code(error: PlugqError) -> int:
    """Return the exit code that an error stands for."""
    # What can not be decoded was there before the call.
    mistake = isinstance(error, _MISTAKES) and not isinstance(error, Undecodable)
    return MISTAKE if mistake else FAILED


def debugging() -> bool:
    """Return whether tracebacks are wanted."""
    return os.environ.get("PLUGQ_DEBUG", "") not in {"", "0"}


def guarded(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit code; what it raises becomes a line on standard error."""
    _show_any_character()
    try:
        code = command() or 0
        stdout: TextIO | None = sys.stdout
        if stdout is not None:
            stdout.flush()
        return code
    except _HELP as error:
        error.show()
        return MISTAKE
    except click.UsageError as error:
        return _told(error, _usage(error), MISTAKE)
    except click.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        return _told(error, error.format_message(), error.exit_code)
    except BrokenPipeError:
        _let_go_of_stdout()
        return FAILED
    except PlugqError as error:
        return _told(error, str(error), exit_code(error))
    except OSError as error:
        return _told(error, _reason(error), FAILED)


def log_to_stderr(*, level: int = logging.WARNING, tracebacks: bool = False) -> None:
    """Show what is logged as lines on standard error, unless somebody else has set up logging.

    Loops that stumble in the background show at level ``INFO`` only: whoever asks for less says
    what came of it as the command's own error.
    """
    root = logging.getLogger()
    ours = [handler for handler in root.handlers if isinstance(handler.formatter, _Lines)]
    if len(ours) != len(root.handlers):
        return
    for handler in ours:
        root.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(level)
    handler.setFormatter(_Lines(tracebacks=tracebacks or debugging()))
    if level > logging.INFO:
        handler.addFilter(_not_of_loops)
    root.addHandler(handler)
    logging.getLogger("plugq").setLevel(level)


def _not_of_loops(record: logging.LogRecord) -> bool:
    return record.name != "plugq.lifecycle" or record.levelno > logging.WARNING


class _Lines(logging.Formatter):
    def __init__(self, *, tracebacks: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        if record.name.partition(".")[0] != "plugq":
            return "\n".join(safe_lines(super().format(record)))
        # What a job or a plugin has said must not look like a line of its own.
        changes: dict[str, object] = {"msg": " ".join(record.getMessage().split()), "args": None}
        if not self._tracebacks:
            changes |= {"exc_info": None, "exc_text": None}
        return "\n  ".join(
            safe_lines(super().format(logging.makeLogRecord(record.__dict__ | changes)))
        )


def _told(error: BaseException, message: str, code: int) -> int:
    if debugging():
        traceback.print_exception(error)
    note(f"plugq: {safe(' '.join(message.split()))}")
    return code


def _usage(error: click.UsageError) -> str:
    message = error.format_message().rstrip(".")
    message = message[:1].lower() + message[1:]
    path = error.ctx.command_path if error.ctx is not None else "plugq"
    return f"{message} (see `{path} --help`)"


def _reason(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason


def _show_any_character() -> None:
    """Keep a character that the terminal's encoding lacks from ending the command."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            with contextlib.suppress(OSError, ValueError):
                reconfigure(errors="backslashreplace")


def _let_go_of_stdout() -> None:
    """Keep the interpreter from complaining at its exit about output that nobody takes."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


__all__ = [
    "FAILED",
    "INTERRUPTED",
    "MISTAKE",
    "debugging",
    "exit_code",
    "guarded",
    "log_to_stderr",
]
