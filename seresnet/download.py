"""Fetches one file over HTTP: resumed where it broke off, checked against a published MD5, and named only when it is right.

One invariant: a file under its final name has the checksum.
"""

import hashlib
import http.client
import os
import re
import shlex
import time
import urllib.error
import urllib.request
from pathlib import Path

from seresnet.archives import Report
from seresnet.durable import fsync_folder
from seresnet.errors import DataError

TRIES = 3
TIMEOUT_S = 30.0
MAX_BYTES = 1 << 32
_PIECE = 1 << 18


def fetch(url: str, target: Path, md5: str, report: Report, *, mirror: str = "HPC_CIFAR10_URL", pause_s: float = 1.0) -> None:
    """Download url to target through target + ".part", which a later call continues.

    mirror: the variable that the address may come from.
    Raises DataError with the command to run elsewhere when the network does not answer, and when the checksum is another; then the
    file is kept as target + ".bad".
    """
    if not url.startswith(("http://", "https://")):
        raise DataError(f"{url}: not an http or https address. Correct {mirror}.")
    part = target.with_name(target.name + ".part")
    for attempt in range(TRIES):
        try:
            _continue(url, part, report)
            break
        except (OSError, http.client.HTTPException) as error:
            if attempt == TRIES - 1 or _is_final(error):
                raise DataError(_no_network(url, target, error)) from error
            time.sleep(pause_s * 2**attempt)
    if (found := file_md5(part)) != md5:
        bad = target.with_name(target.name + ".bad")
        os.replace(part, bad)
        raise DataError(f"{url}: MD5 is {found}, the published one is {md5}. Kept as {bad}, not used. Run again to download it afresh.")
    os.replace(part, target)
    fsync_folder(target.parent)


def file_md5(path: Path) -> str:
    """MD5 is what was published beside the file: it tells damage, not malice. Nothing in the file is executed either way."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _continue(url: str, part: Path, report: Report) -> None:
    """Append what part lacks. A server that ignores the range sends everything, and part starts again."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        if re.fullmatch(rf"bytes \*/{have}", error.headers.get("Content-Range", "")):
            return  # nothing is missing
        part.unlink()
        raise ConnectionError("the part was longer than the file") from error
    with response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        _copy(response, part, have if resumed else 0, report)


def _copy(response: http.client.HTTPResponse, part: Path, start: int, report: Report) -> None:
    length = response.headers.get("Content-Length")
    total = start + int(length) if length and length.isdigit() else 0
    done = start
    with open(part, "ab" if start else "wb") as file:
        while piece := response.read(_PIECE):
            file.write(piece)
            done += len(piece)
            report("download", done, total)
            if done > MAX_BYTES:
                raise ConnectionError(f"the server sent more than {MAX_BYTES} bytes")
        file.flush()
        os.fsync(file.fileno())
    if total and done != total:
        raise ConnectionError(f"{done} of {total} bytes came")


def _is_final(error: Exception) -> bool:
    return isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500


def _no_network(url: str, target: Path, error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    name = shlex.quote(target.name)
    return (
        f"{url}: cannot be downloaded from here: {reason}. On a machine with a network run\n"
        f"  curl -fL -C - -o {name} {shlex.quote(url)}\n"
        f"and copy the file to {target}, or leave it anywhere and set data.path to it. What came so far is kept and continued."
    )
