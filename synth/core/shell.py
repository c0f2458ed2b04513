"""What the two command lines share: key=value arguments, one line per mistake, one voice under many processes."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence

import typer

from synth.core.checks import UserError
from synth.core.files import is_full


def take(overrides: Sequence[str] | None, key: str) -> tuple[str | None, list[str]]:
    """Returns the value of the last `key=...`, None if there is none, and the other overrides."""
    mine = [o for o in overrides or [] if o.startswith(f"{key}=")]
    rest = [o for o in overrides or [] if not o.startswith(f"{key}=")]
    return (mine[-1].partition("=")[2] if mine else None), rest


def take_number(overrides: Sequence[str] | None, key: str, default: int | None) -> tuple[int | None, list[str]]:
    """Returns the whole number of `key=...` (or `default`), and the other overrides.

    Raises:
        UserError: if it is not a whole number.
    """
    text, rest = take(overrides, key)
    if text is None:
        return default, rest
    try:
        return int(text), rest
    except ValueError:
        raise UserError(f"{key}={text}", rule="it must be a whole number", repair=f"write {key}=100") from None


def required(value: str | None, key: str, example: str) -> str:
    """Returns `value`.

    Raises:
        UserError: if it was not given.
    """
    if not value:
        raise UserError(f"{key}=", rule="it was not given", repair=f"add {key}={example}")
    return value


def refuse(overrides: Sequence[str], known: str) -> None:
    """Raises UserError if any override is left over."""
    if overrides:
        raise UserError(overrides[0], rule="no such setting here", repair=f"take {known}")


def is_main() -> bool:
    """Returns whether this process speaks: the first of those that accelerate launched."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str, *, anyone: bool = False) -> None:
    """Prints one line, once for all processes; `anyone`: for this one, the first or not, knows what others do not."""
    if anyone or is_main():
        typer.echo(text)


def _complain(text: str) -> None:
    # Other processes speak too, for a mistake may be theirs alone, but say who they are.
    who = "" if is_main() else f"process {os.environ['RANK']}: "
    sys.stderr.write(f"{who}error: {text}\n")


INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended, as shells count it."""


def run(app: Callable[[], None]) -> None:
    """Runs a command; a mistake, a full device or memory, or a closed folder is one line on stderr and exit code 2."""
    logging.basicConfig(level=logging.INFO if is_main() else logging.ERROR, format="%(message)s")
    for noisy in ("httpx", "matplotlib", "datasets", "fsspec", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Threads that wait by spinning for long starve each other when anything else runs on the machine: a step then takes
    # ten times as long. Read by the OpenMP runtime when torch loads it, so it must be set before that.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    # The libraries' own bars about loading four small files would drown ours; read where they are imported.
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    try:
        app()
    except SystemExit as stop:
        if stop.code == INTERRUPTED and is_main():
            sys.stderr.write("stopped; a command with out= goes on where it stopped when it is run again\n")
        raise
    except (UserError, FloatingPointError) as error:
        _complain(str(error))
        raise SystemExit(2) from None
    except (OSError, MemoryError, RuntimeError) as error:
        repair = _repair(error)
        if repair is None:
            raise
        _complain(f"{str(error).splitlines()[0]}. Repair: {repair}.")
        raise SystemExit(2) from None


def _repair(error: Exception) -> str | None:
    """Returns what helps against an error that the machine and not the code made, None for any other."""
    if is_full(error):
        return "free some space and run the same command again, it resumes"
    if isinstance(error, OSError):
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            return "choose a folder that you may read and write"
        if error.errno in (errno.EISDIR, errno.EEXIST):  # of a path a part of which is a file, too
            return "choose the name of a file in a folder"
        return None
    # torch has an error class for a GPU's memory alone; a CPU's allocator raises a bare RuntimeError.
    if isinstance(error, MemoryError) or re.search("out of memory|t allocate memory", str(error)):
        return "take a smaller size= or batch_size="
    return None
