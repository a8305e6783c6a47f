"""The journal of one run as columns: what seresnet.journal.read gives as records, for readers of 10,000 runs.

Lines as seresnet.journal.append lays them out are checked and parsed many at a time; every other line goes through journal.parse, which
decides alone what is torn or foreign. One invariant: the columns equal those of the merged records, number for number.
"""

import errno
import hashlib
import operator
import os
import stat
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from seresnet import journal
from seresnet.durable import parse_json
from seresnet.journal import EpochRecord
from seresnet.record_types import plain_kinds
from seresnet.run_folder import RunFolder

#: The columns, in the order of a line's keys.
COLUMNS = tuple(key.name for key in fields(EpochRecord))
_STEP, _GENERATION = COLUMNS.index("step"), COLUMNS.index("generation")
_KINDS = tuple(kinds for _, kinds in plain_kinds(EpochRecord))
#: A line's items in the order in which its checksum has them.
_canonical = operator.itemgetter(*sorted(range(len(COLUMNS)), key=lambda place: COLUMNS[place]))
_SUM_KEY = f'"{journal.SUM}": '.encode()
_OPEN = zlib.crc32(b"{")
#: json.loads takes a longer integer than 64 bits; its float would pass as a number.
_LONG = 2.0**62
#: From so many lines on it pays to parse them together.
_MANY = 10


@dataclass(frozen=True)
class ReadFile:
    """What was read of one file of the journal."""

    name: str
    size: int
    sha256: str
    is_whole: bool  # its last line ends with a newline, so that more may be appended to it


@dataclass(frozen=True, kw_only=True, eq=False)
class Journal:
    """All epochs of a run in order, each once."""

    values: np.ndarray  # float64, (columns, epochs); NaN where a value was not measured
    bad: dict[str, int]  # number of torn or foreign lines of each file that has any
    files: tuple[ReadFile, ...]


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What an earlier reading of the same journal gave."""

    files: tuple[ReadFile, ...]
    bad: dict[str, int]
    values: Callable[[], np.ndarray | None]  # None where they are lost


def read(folder: RunFolder, earlier: Earlier | None = None) -> Journal:
    """Read and merge the journal's files; of one that only grew since an earlier reading, the new lines. Raises OSError."""
    contents = [(name, read_plain(folder.metrics / name)) for name in journal.names(folder)]
    sizes = {seen.name: seen.size for seen in earlier.files} if earlier else {}
    looks = [_look(name, data, sizes.get(name, 0)) for name, data in contents]
    known = earlier.values() if earlier is not None and _has_only_grown(earlier.files, looks) else None
    if earlier is not None and known is not None:
        parts, bad = [known], dict(earlier.bad)
        contents = [(name, data[seen.size :]) for (name, data), seen in zip(contents, earlier.files, strict=True)]
    else:
        parts, bad = [], {}
    for name, data in contents:
        values, torn = parse(data)
        parts.append(values)
        if torn:
            bad[name] = bad.get(name, 0) + torn
    return Journal(values=_merged(parts), bad=bad, files=tuple(seen for seen, _ in looks))


def read_plain(path: Path) -> bytes:
    """The bytes of a file; raises OSError for a pipe, a device or a socket, which might never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # or a pipe without a writer would not even open
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a plain file", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _look(name: str, data: bytes, before: int) -> tuple[ReadFile, str]:
    """(the file, the digest of what it began with, as long as it was before): hashed once, because it takes longer than to read."""
    digest = hashlib.sha256(data[:before])
    start = digest.hexdigest()
    digest.update(memoryview(data)[before:])
    return ReadFile(name=name, size=len(data), sha256=digest.hexdigest(), is_whole=not data or data.endswith(b"\n")), start


def _has_only_grown(earlier: Sequence[ReadFile], looks: Sequence[tuple[ReadFile, str]]) -> bool:
    """Whether every file begins with what was read of it, and only the last, whose records count most, goes on after that."""
    if not earlier or [seen.name for seen in earlier] != [now.name for now, _ in looks]:
        return False
    is_longer = [now.size > seen.size for (now, _), seen in zip(looks, earlier, strict=True)]
    if any(is_longer[:-1]) or (is_longer[-1] and not earlier[-1].is_whole):
        return False
    return all(start == seen.sha256 for (_, start), seen in zip(looks, earlier, strict=True))


def parse(data: bytes) -> tuple[np.ndarray, int]:
    """(columns of the lines that are records, in their order; how many are not)."""
    lines = [line for line in data.splitlines() if line.strip()]
    found = _parse_together(lines) if len(lines) >= _MANY else None
    if found is not None:
        return found, 0
    records = [record for record in map(journal.parse, lines) if record is not None]
    rows = [[getattr(record, key) for key in COLUMNS] for record in records]
    return np.array(rows, dtype=np.float64).reshape(-1, len(COLUMNS)).T, len(lines) - len(records)


def _parse_together(lines: Sequence[bytes]) -> np.ndarray | None:
    """None unless every line has the layout of journal.append, its checksum, and values of the right types."""
    if not all(map(_is_as_written, lines)):
        return None
    try:
        # Brackets around all lines: one call for 900 lines takes half the time of 900 calls.
        rows = parse_json(b"[" + b",".join(lines) + b"]")
        columns = list(zip(*(row.values() for row in rows), strict=True))
    except (ValueError, AttributeError):
        return None
    names = (*COLUMNS, journal.SUM)
    if len(columns) != len(names) or len(rows) != len(lines) or any(tuple(row) != names for row in rows):
        return None
    values = np.empty((len(COLUMNS), len(lines)), dtype=np.float64)
    for place, kinds in enumerate(_KINDS):
        if not _fill(values[place], columns[place], kinds):
            return None
    return values


def _is_as_written(line: bytes) -> bool:
    """Whether the checksum is that of the line's own text, put into the order and spacing of canonical JSON."""
    items = line[1:-1].split(b", ")
    if len(items) != len(COLUMNS) + 1 or not items[-1].startswith(_SUM_KEY):
        return False
    text = b",".join(_canonical(items)).replace(b'": ', b'":') + b"}"
    return items[-1][len(_SUM_KEY) :] == b"%d" % zlib.crc32(text, _OPEN)


def _fill(into: np.ndarray, column: Sequence[object], kinds: frozenset[type]) -> bool:
    """False where journal.parse has to judge: another type, a number that is none, or one that is very long."""
    found = set(map(type, column))
    if not found <= kinds:
        return False
    try:
        into[:] = np.array(column, dtype=np.float64)
    except OverflowError:
        return False
    missing = np.isnan(into)
    is_known = int(missing.sum()) == (column.count(None) if type(None) in found else 0) and not np.isinf(into).any()
    return is_known and (int not in found or bool((np.abs(into[~missing]) < _LONG).all()))


def _merged(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Columns in the order of their steps: of one step the highest generation's, of those the last."""
    values = np.concatenate(parts, axis=1) if parts else np.empty((len(COLUMNS), 0))
    steps = values[_STEP]
    if (steps[1:] > steps[:-1]).all():
        return values
    order = np.lexsort((values[_GENERATION], steps))  # stable: lines of one step and generation stay in their order
    ordered = steps[order]
    is_last = np.append(ordered[1:] != ordered[:-1], True)
    return values[:, order[is_last]]
