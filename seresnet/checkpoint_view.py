"""How python -m seresnet.checkpoint shows what it found: a table for screens of 80 columns and more, lines of damage, and JSON.

Text only; decides nothing. One invariant: a file's name is never cut, so that it can be pasted: a narrow screen gives it a line of its own.
"""

import shutil
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from seresnet.file_look import FileLook
from seresnet.inspection import RunLook, bases
from seresnet.repair import Repair

#: From this width on a file's name stands in its row, below it on a line of its own.
_WIDE = 130


def width() -> int:
    """Columns of the screen; a file or a pipe has room for everything."""
    return shutil.get_terminal_size((200, 50)).columns


def table(look: RunLook, columns: int) -> str:
    """Every checkpoint of a run, newest last, what was set aside below, and where a start goes on."""
    lines = [_title(look), *_rows([item for item in look.files if not item.is_set_aside], look, columns)]
    set_aside = [item for item in look.files if item.is_set_aside]
    if set_aside:
        lines += ["", "set aside in ckpt/bad/:", *_rows(set_aside, look, columns)]
    return "\n".join([*lines, f"{look.resume}."])


def verdict(look: RunLook, columns: int) -> str:
    """What verify says of one run: a line for each finding, damage first, and where a start goes on."""
    damage = [finding for finding in look.findings if finding.is_damage]
    good = f"{len(look.good)} good checkpoint{'s' if len(look.good) != 1 else ''}, {len(look.epochs)} epochs"
    fine = "no checkpoint yet" if look.epochs and not look.good and not look.is_done else "ok"
    head = f"{_title(look)}: {f'DAMAGED in {len(damage)} places' if len(damage) > 1 else 'DAMAGED' if damage else fine}, {good}"
    words = [_wrapped(f"{'damage' if finding.is_damage else 'note'}: {finding}", columns) for finding in look.findings]
    # Once, at the end: beside each file it would be the longest part of every line.
    mends = any("`repair`" in finding.fix and finding.is_damage and "leaves" not in finding.fix for finding in look.findings)
    hint = [f"  repair: python -m seresnet.checkpoint repair {look.folder.path}"] if mends else []
    return "\n".join([head, *words, *hint, _wrapped(f"{look.resume}.", columns)])


def _wrapped(text: str, columns: int) -> str:
    """Over several lines where the screen is narrow; no path and no file name is cut. Files and pipes get one line, for grep."""
    if columns >= _WIDE:
        return f"  {text}"
    return textwrap.fill(text, columns, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def repaired(done: Repair, columns: int, *, dry_run: bool) -> str:
    """What repair did, what it will not do, and where a start goes on now."""
    nothing = [] if done.done or done.left else ["nothing to mend"]
    owner = [f"nobody owns it: {done.proof}"] if done.proof else []
    acts = [f"{'would: ' if dry_run else ''}{line}" for line in done.done]
    lines = [*owner, *acts, *(f"left: {line}" for line in done.left), *nothing, f"{done.look.resume}."]
    return "\n".join([_title(done.look), *(_wrapped(line, columns) for line in lines)])


def to_json(look: RunLook) -> dict[str, Any]:
    """The same for programs."""
    from_claims = bases(look.claims)
    return {
        "run": str(look.folder.path),
        "run_id": look.record.run_id if look.record else None,
        "slug": look.record.slug if look.record else None,
        "parent": asdict(look.record.parent) if look.record and look.record.parent else None,
        "resume": look.resume,
        "resume_from": str(look.order[0]) if look.order else None,
        "findings": [asdict(finding) for finding in look.findings],
        "checkpoints": [
            {
                "file": item.path.relative_to(look.folder.path).as_posix(),
                "generation": item.name.generation if item.name else None,
                "step": item.name.step if item.name else None,
                "epoch": _epoch(item, look),
                "what": what_it_is(item, look),
                "base_of": list(from_claims.get(item.path.name, ())),
                "size": item.size,
                "time": item.time,
                "condition": item.condition,
                "set_aside": item.is_set_aside,
                "fault": item.fault or None,
            }
            for item in look.files
        ],
    }


def what_it_is(item: FileLook, look: RunLook) -> str:
    """Why this file exists, in the words of its header and of the claims."""
    header = item.header
    words = []
    if header is not None:
        flags = {"fork": header.generation == 0, "epoch": header.epoch_boundary, "final": header.final, "stop": header.stop}
        words = [word for word, is_set in flags.items() if is_set]
        if header.best:
            newest = look.good[look.order[0]].header if look.order else None
            current = None if newest is None else str(look.order[0]) if newest.best else newest.best_so_far
            words.append("best" if current in (None, item.path.name) else "was best")
    started = bases(look.claims).get(item.path.name, ())
    words += [f"base of attempt {', '.join(map(str, started))}"] if started else []
    return ", ".join(words) or ("periodic" if header is not None else "")


def _title(look: RunLook) -> str:
    if look.record is None:
        return str(look.folder.path)
    parent = f", forked from {look.record.parent}" if look.record.parent else ""
    return f"{look.folder.path} ({look.record.run_id}{parent})"


def _rows(items: Sequence[FileLook], look: RunLook, columns: int) -> list[str]:
    if not items:
        return [f"  ckpt/ {look.unlisted}"] if look.unlisted else ["  no checkpoint"]
    head: tuple[str, ...] = ("attempt", "step", "epoch", "what", "MB", "age", "state", "file")
    rows = [_cells(item, look) for item in sorted(items, key=lambda item: (item.name is None, str(item.name or ""), item.path.name))]
    names = [row[-1] for row in rows]
    if columns < _WIDE:
        head, rows = head[:-1], [row[:-1] for row in rows]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    over = sum(widths) + 2 * len(widths) - columns
    if over > 0:
        widths[3] = max(8, widths[3] - over)
    lines = [_line(row, widths) for row in rows]
    if columns < _WIDE:
        lines = [part for line, name in zip(lines, names, strict=True) for part in (line, f"    {name}")]
    return [_line(head, widths), *lines]


def _cells(item: FileLook, look: RunLook) -> tuple[str, ...]:
    name, epoch = item.name, _epoch(item, look)
    return (
        str(name.generation) if name else "-",
        str(name.step) if name else "-",
        "-" if epoch is None else f"{epoch:g}",
        what_it_is(item, look) or item.fault,
        f"{item.size / 1e6:.1f}" if item.size >= 1e5 else f"{item.size / 1e6:.3f}",
        age(time.time() - item.time) if item.time else "-",
        item.condition,
        item.path.name,
    )


def _epoch(item: FileLook, look: RunLook) -> float | None:
    size = look.steps_per_epoch
    return round(item.name.step / size, 2) if size and item.name is not None else None


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = []
    for column, (text, wide) in enumerate(zip(row, widths, strict=True)):
        cut = text if len(text) <= wide else text[: wide - 3] + "..."
        cells.append(cut.rjust(wide) if column in (0, 1, 2, 4, 5) else cut.ljust(wide))
    return ("  " + "  ".join(cells)).rstrip()


def age(seconds: float) -> str:
    """In one unit."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
