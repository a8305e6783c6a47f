"""Files that are either wholly there or not there at all, also after a power loss.

The one place that knows the order: temp file in the same folder, write, flush, fsync, rename, fsync the folder.
"""

import json
import os
import secrets
from pathlib import Path
from typing import Any


def write_durably(path: Path, payload: bytes) -> None:
    """Replace path by payload; when this returns, a power loss keeps the new content, and before that the old one.

    Raises OSError (ENOSPC, EDQUOT, EIO, ...) with the previous file intact and no temp file left behind.
    """
    temp = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temp, "xb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temp, path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_json_durably(path: Path, value: Any) -> None:
    """write_durably of sorted, indented JSON; NaN and infinities are refused, because JSON has none."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    write_durably(path, (text + "\n").encode())


def fsync_folder(folder: Path) -> None:
    """Make names in this folder durable: without it a renamed file can vanish at a power loss."""
    handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def canonical_json(value: Any) -> str:
    """One text for equal values: sorted keys, no spaces, shortest float form. Used under every digest."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
