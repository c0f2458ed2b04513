"""Files that are whole or absent: atomic writes, content hashes, and folders that hold exactly one run."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from synth.core.checks import UserError

RUN_FILE = "run.json"
MOST_NAMED, LONGEST_WORD = 4, 12
"""How many differing settings an error lists, and how long a word may be to be shown."""
_MISSING = object()

_UMASK = os.umask(0o077)  # it can only be read by setting it
os.umask(_UMASK)


def sha256(data: bytes) -> str:
    """Returns the hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def hash_json(value: object) -> str:
    """Returns 16 hexadecimal digits that identify a JSON-serialisable value, whatever its key order."""
    return sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())[:16]


def is_full(error: BaseException | None) -> bool:
    """Returns whether a write failed for want of room: on the device, in the quota, or in the largest file allowed."""
    while error is not None:
        # safetensors has the system's number in its text alone; torch raises its own error on top of the system's.
        said = re.search(r"\(os error (\d+)\)", str(error)) if isinstance(error, SafetensorError) else None
        number = int(said[1]) if said else getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        error = error.__context__
    return False


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Returns a context in which `path` is replaced: a full device is a UserError there, whichever library met it."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if is_full(error):
            raise UserError(str(path), rule="no space left on the device; nothing was replaced",
                            repair="free some space and run the same command again, it resumes") from error
        raise


def open_to_others(path: Path) -> None:
    """Gives a new file the mode that any other gets here; safetensors leaves its own to their owner alone."""
    path.chmod(0o666 & ~_UMASK)


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Writes through `write(temporary)` and renames, so that `path` is old or new but never half written.

    Raises:
        UserError: if the device is full; the old file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with room_for(path):
            write(temporary)
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            open_to_others(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_through(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Writes through `write(open file)`, as `replace_file`.

    For torch.save: given a path it opens the file itself, and what the system says of a failed write is lost.
    """
    def through(temporary: Path) -> None:
        with temporary.open("wb") as handle:
            write(handle)

    replace_file(path, through)


def sweep(folder: Path) -> None:
    """Removes what killed processes left half written below `folder`; call it where nobody else is writing."""
    for temporary in Path(folder).rglob(".*.tmp"):
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` atomically."""
    replace_file(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: object) -> None:
    """Writes indented JSON atomically."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def _differing(old: object, new: object, key: str) -> list[str]:
    # Names of what differs, group by group; both values where they are numbers or words, which a hash is not.
    if isinstance(old, dict) and isinstance(new, dict):
        return [text for k in {**new, **old} if (k in old, old.get(k)) != (k in new, new.get(k))
                for text in _differing(old.get(k, _MISSING), new.get(k, _MISSING), f"{key}.{k}" if key else k)]
    shown = all(isinstance(v, int | float) or (isinstance(v, str) and len(v) <= LONGEST_WORD) for v in (old, new))
    return [f"{key}, {old!r} there and {new!r} now"] if shown else [key]


def check_file(path: Path, name: str) -> None:
    """Returns nothing; raises if `path`, which a command is to write in the end, is a folder.

    Raises:
        UserError: naming the word or option `name` that gave it.
    """
    if path.is_dir():
        raise UserError(f"{name} {path}", rule="it is a folder, and a file is to be written",
                        repair="name a file in it")


def read_mark(folder: Path) -> dict[str, object]:
    """Returns what `claim_folder` wrote into `folder`; nothing where no such file is there, or another program's."""
    try:
        mark = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return mark if isinstance(mark, dict) and {"kind", "hash"} <= set(mark) else {}


def check_room(out: Path) -> dict[str, object]:
    """Returns the mark of the run that `out` holds, {} if it is new or empty.

    Raises:
        UserError: if it is a file, or holds files that no run wrote.
    """
    if out.exists() and not out.is_dir():
        raise UserError(str(out), rule="it is a file, and a run is a folder", repair="choose another out=")
    # Looked at before the marker: another process of the same run may be claiming the folder at this moment.
    occupied = out.exists() and any(p for p in out.iterdir() if not p.name.startswith("."))
    held = read_mark(out)
    if occupied and not held:
        raise UserError(str(out), rule="this folder is not empty and holds no run of ours",
                        repair="choose another out=")
    return held


def claim_folder(out: Path, *, kind: str, identity: dict[str, object]) -> Path:
    """Returns `out`, made and marked as holding the run `identity`; the same run may claim it again (resume).

    Raises:
        UserError: if the folder holds another run, or files that no run wrote.
    """
    out = Path(out)
    mark = {"kind": kind, "hash": hash_json(identity), "identity": identity}
    if held := check_room(out):
        if held.get("hash") != mark["hash"] or held.get("kind") != kind:
            changed = _differing(held.get("identity", {}), json.loads(json.dumps(identity)), "")
            more = f" and {len(changed) - MOST_NAMED} more" if len(changed) > MOST_NAMED else ""
            raise UserError(str(out), rule=f"this folder holds another {held.get('kind')} run (differs in: "
                            f"{'; '.join(changed[:MOST_NAMED]) or 'kind'}{more})",
                            repair="choose another out=, or delete the folder")
        return out
    write_json(out / RUN_FILE, mark)
    return out
