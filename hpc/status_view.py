"""How a look at a sweep is shown: a line a run, totals, what waits for what, what went wrong, and the command that goes on.

Text only. Lines are laid out here and not by rich's Table, which takes 0.8 s for 1,000 rows of 11 columns (measured), a third of what
the whole command may take. One invariant: every run is one row, and a narrow screen costs columns, never rows.
"""

import os
import shlex
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from hpc import mirror_state
from hpc.paths import Plan, Submission, SweepFolder
from hpc.pending import plain_reason
from hpc.plan_view import count, state_style, states_text
from hpc.progress_view import RunProgress, duration, one_line, percent
from hpc.sparkline import sparkline
from hpc.spent import totals
from hpc.states import MISSING, STATES, label
from hpc.status_look import Look

#: Room for the name of a run that is not given to other columns; longer names go on in the next line.
_NAME = 18
#: A note is worth its column from this width on.
_NOTE = 40
_GAP = 2
#: Percent of accuracy that fill the height of a trend: less than that is mostly noise between epochs.
_TREND_PCT = 2.0
#: States in the order in which a screen that is too low shows them.
_URGENT = ("failed", "running", "preempted", "waiting", "cancelled", "lost", "stopped", "queued", "extend", "new", "finished")


@dataclass(frozen=True, kw_only=True)
class _Column:
    """One column; `rank` says how soon it gives way on a narrow screen: the highest first."""

    head: str
    rank: int
    text: Callable[[RunProgress], str]
    is_number: bool = True


def render(look: Look, width: int, *, is_ascii: bool, height: int | None = None) -> Text:
    """The whole screen. is_ascii: for a file or a pipe, where nothing is folded.

    height: rows of the table are left out, finished ones first, until it fits.
    """
    fold = (lambda line: [line]) if is_ascii else (lambda line: _folded(line, width))
    above = [Text(line, style="bold yellow") for line in fold(look.held or "") if look.held]
    below = [Text(line, style="bold") for line in fold(totals_text(look))]
    below += [Text(line) for remark in remarks(look, has_notes=_has_notes(look, width)) for line in fold(remark)]
    rows, left_out = list(look.rows), None
    if height is not None and len(above) + _height(below, width) + len(rows) + 4 > height:
        rows, left_out = _most_urgent(rows, max(3, height - len(above) - min(_height(below, width), height // 2) - 5))
    lines = [*above, *table_lines(look, rows, width, is_ascii=is_ascii), *([left_out] if left_out else []), Text(), *below]
    return Text("\n").join(lines)


def table_lines(look: Look, rows: Sequence[RunProgress], width: int, *, is_ascii: bool) -> list[Text]:
    """Head, rule, and a line a run (more where its name is longer than the screen allows)."""
    names = [row.run.slug for row in rows]
    columns = _fitting(look, rows, width, max([3, *map(len, names)]), is_ascii)
    cells = [[column.text(row) for column in columns] for row in rows]
    widths = [max([len(column.head), *(len(line[place]) for line in cells)]) for place, column in enumerate(columns)]
    name_width = min(max([3, *map(len, names)]), max(12, width - sum(widths) - _GAP * len(widths)))
    note_width = width - name_width - sum(widths) - _GAP * (len(widths) + 1)
    notes = [_note(look, row) for row in rows]
    has_notes = note_width >= _NOTE and any(notes)
    heads = _join("run", [column.head for column in columns], columns, name_width, widths) + ("  note" if has_notes else "")
    lines = [Text(heads.rstrip(), style="bold"), Text(("-" if is_ascii else "─") * min(width, len(heads) if not has_notes else width))]
    state_at = name_width + _GAP
    for row, name, texts, note in zip(rows, names, cells, notes, strict=True):
        parts = [name[start : start + name_width] for start in range(0, len(name), name_width)]
        text = _join(parts[0], texts, columns, name_width, widths)
        line = Text((f"{text}  {_cut(note, note_width)}" if has_notes and note else text).rstrip())
        line.stylize(state_style(row.run.state), state_at, state_at + widths[0])
        lines += [line, *(Text(part) for part in parts[1:])]
    return lines


def totals_text(look: Look) -> str:
    """For example "12 runs: 3 finished, 2 running; 41.2 GPU-hours; likely all done in 3 h 05 min (Tue 14:10)"."""
    counts = Counter(row.run.state for row in look.rows)
    parts = [f"{count(len(look.rows), 'run')}: {states_text([state for state in STATES for _ in range(counts[state])])}"]
    hours = totals([row.spent for row in look.rows])
    parts += [f"{_hours(spent)} {device.upper()}-hours" for device, spent in hours.items()]
    if look.done_time is not None:
        when = time.strftime("%a %d %b %H:%M", time.localtime(look.done_time))
        rest = "what is queued and running" if any(counts[state] for state in ("failed", "cancelled", *MISSING)) else "all"
        parts.append(f"{rest} likely done in {duration(max(0.0, look.done_time - look.time))} ({when})")
    return "; ".join(parts)


def remarks(look: Look, *, has_notes: bool) -> list[str]:
    """The lines below the totals."""
    lines = [f"note: {note}" for note in look.notes]
    lines += [f"warning: {line}" for line in (*look.low_use, *look.purge)]
    if not has_notes:
        lines += _waiting_lines(look)
    for row in look.rows:
        if row.run.state in ("failed", "cancelled", "lost"):
            lines += _ending_lines(row)
    lines += [f"{row.run.slug}: {row.run.note}" for row in look.rows if row.run.note]
    lines += _wandb_lines(look)
    marked = [row.run.slug for row in look.rows if row.tier != "T1"]
    if marked:
        names = ", ".join(marked[:6]) + (", ..." if len(marked) > 6 else "")
        lines.append(f"tier T2, not bit for bit what its start was (run.yaml's marks say why): {names}")
    return lines + next_commands(look)


def _wandb_lines(look: Look) -> list[str]:
    """How the sweep stands with W&B, and the command that uploads what no mirror is going to."""
    views = {row.run.slug: look.wandb[row.run.run_id] for row in look.rows if row.run.run_id in look.wandb}
    line = mirror_state.line(look.plan.wandb.mode, views)
    if line is None:
        return []
    is_at_rest = not any(row.run.state == "running" for row in look.rows)
    upload = [f"    python -m hpc.mirror {shlex.quote(str(look.sweep.path))}"]
    return [line, *(upload if is_at_rest and mirror_state.needs_upload(views) else [])]


def next_commands(look: Look) -> list[str]:
    """What to type where nothing goes on by itself; several states may need several commands."""
    found = Counter(row.run.state for row in look.rows)
    command = launch_command(look)
    lines = []
    left = [state for state in MISSING if found[state]]
    if left:
        what = ", ".join(f"{found[state]} {state}" for state in left)
        lines += [f"nobody has {count(sum(found[state] for state in left), 'run')} ({what}); to go on:", f"    {command}"]
    if found["cancelled"]:
        lines += ["cancelled runs go on only when asked for:", f"    {command} --retry cancelled"]
    if found["failed"]:
        lines += ["when the cause of a failure is mended:", f"    {command} --retry failed"]
    return lines


def launch_command(look: Look) -> str:
    """The launch that goes on with this sweep, as it is typed here."""
    if not look.submissions and all(row.run.task and "/" not in row.run.task for row in look.rows):
        return "start it as before (sbatch/train.sh or python -m hpc.supervisor)"
    last = look.submissions[-1] if look.submissions else None
    return command(look.sweep, look.plan, last, _runs_dir(look, last))


def command(sweep: SweepFolder, plan: Plan, last: Submission | None, runs_dir: str) -> str:
    """The launch of this sweep as it was typed the last time; runs_dir: ` --runs-dir DIR` or nothing."""
    local = " --local" if last and last.mode == "local" and last.site.get("scheduler") == "slurm" else ""
    words = "".join(f" {shlex.quote(text)}" for text in plan.overrides)
    return f"python -m hpc.launch --sweep {_source(sweep, plan)}{words}{runs_dir}{local}"


def _runs_dir(look: Look, last: Submission | None) -> str:
    """` --runs-dir DIR` where a launch would not look here by itself: the site's folder may be another one since the sweep was moved."""
    here = look.sweep.path.absolute()
    asked = (last.site.get("runs_dir") if last else None) or "runs"
    usual = Path(os.path.expandvars(str(asked))).expanduser()
    if (usual / look.plan.sweep).resolve() == here.resolve() or "$" in str(usual):
        return ""
    folder = os.path.relpath(here.parent if here.name == look.plan.sweep else here)
    return f" --runs-dir {shlex.quote(folder)}"


def _source(sweep: SweepFolder, plan: Plan) -> str:
    if plan.source is None:
        return "YOUR_SWEEP.yaml"
    path = Path(os.path.normpath(sweep.path / plan.source))
    relative = Path(os.path.relpath(path))
    return shlex.quote(str(path if relative.parts[:2] == ("..", "..") else relative))


def _columns(look: Look, is_ascii: bool) -> list[_Column]:
    return [
        _Column(head="state", rank=0, text=lambda row: label(row.run.state, row.run.ending), is_number=False),
        _Column(head="epoch", rank=0, text=lambda row: f"{row.epoch}/{row.epochs}" if row.epochs else str(row.epoch)),
        _Column(head="test %", rank=1, text=lambda row: percent(row.test_top1_pct)),
        _Column(head="val %", rank=7, text=lambda row: percent(row.val_top1_pct)),
        _Column(head="trend", rank=8, text=lambda row: sparkline(row.trend, is_ascii=is_ascii, least_span=_TREND_PCT)),
        _Column(head="s/epoch", rank=5, text=lambda row: "-" if row.epoch_s is None else _seconds(row.epoch_s)),
        _Column(head="left", rank=2, text=lambda row: "-" if row.eta_s is None else duration(row.eta_s)),
        _Column(head=_hours_head(look), rank=4, text=lambda row: _hours_cell(look, row)),
        _Column(head="tries", rank=3, text=lambda row: str(row.run.attempts)),
        _Column(head="node", rank=6, text=lambda row: (row.run.node or "-").partition(".")[0], is_number=False),
        _Column(head="W&B", rank=9, text=lambda row: _wandb_cell(look, row), is_number=False),
    ]


def _wandb_cell(look: Look, row: RunProgress) -> str:
    view = look.wandb.get(row.run.run_id)
    if view is None:
        return "-"
    return " ".join([f"behind {view.behind}" if view.word == "behind" else view.word, *([view.address] if view.address else [])])


def _fitting(look: Look, rows: Sequence[RunProgress], width: int, longest_name: int, is_ascii: bool) -> list[_Column]:
    """Columns that fit beside the names, without those that say nothing here."""
    silent = {"val %"} if all(row.val_top1_pct is None for row in rows) else set()
    silent |= set() if any(row.trend for row in rows) else {"trend"}
    silent |= {"W&B"} if not look.wandb else set()
    columns = [column for column in _columns(look, is_ascii) if column.head not in silent]
    sizes = {column.head: max([len(column.head), *(len(column.text(row)) for row in rows)]) + _GAP for column in columns}
    for rank in range(9, 0, -1):
        if min(longest_name, max(_NAME, width // 4)) + sum(sizes[column.head] for column in columns) <= width:
            break
        columns = [column for column in columns if column.rank != rank]
    return columns


def _has_notes(look: Look, width: int) -> bool:
    return bool(look.rows) and table_lines(look, look.rows[:50], width, is_ascii=True)[0].plain.endswith("  note")


def _join(name: str, texts: Sequence[str], columns: Sequence[_Column], name_width: int, widths: Sequence[int]) -> str:
    parts = [name.ljust(name_width)]
    for text, column, width in zip(texts, columns, widths, strict=True):
        parts.append(text.rjust(width) if column.is_number else text.ljust(width))
    return (" " * _GAP).join(parts)


def _note(look: Look, row: RunProgress) -> str:
    """Why it waits, or what went wrong."""
    if row.run.state in ("failed", "cancelled"):
        return one_line(row.run.reason) if row.run.reason else ""
    return _waiting_text(look, row) or row.run.note or ""


def _waiting_text(look: Look, row: RunProgress) -> str | None:
    task = row.run.task or ""
    job = look.queue.jobs.get(task)
    if job is None or look.queue.tasks.get(task) != "pending" or row.run.state not in ("queued", "preempted"):
        return None
    start = f"; expected to start {time.strftime('%a %d %b %H:%M', time.localtime(job.start))}" if job.start else ""
    return plain_reason(job.reason) + start


def _waiting_lines(look: Look) -> list[str]:
    """Each reason once, with the runs that it holds."""
    waiting: dict[str, list[str]] = {}
    for row in look.rows:
        if text := _waiting_text(look, row):
            waiting.setdefault(text, []).append(row.run.slug)
    lines = []
    for text, slugs in waiting.items():
        more = f" and {len(slugs) - 4} more" if len(slugs) > 4 else ""
        lines.append(f"queued: {', '.join(slugs[:4])}{more}: {text}")
    return lines


def _ending_lines(row: RunProgress) -> list[str]:
    run = row.run
    what = one_line(run.reason) if run.ending else "its process is gone and said nothing"
    return [f"{run.slug}: {label(run.state, run.ending)}: {what}", f"    log: {run.folder.log}"]


def _most_urgent(rows: Sequence[RunProgress], places: int) -> tuple[list[RunProgress], Text | None]:
    chosen = sorted(range(len(rows)), key=lambda index: (_URGENT.index(rows[index].run.state), index))[:places]
    hidden = [row.run.state for index, row in enumerate(rows) if index not in set(chosen)]
    if not hidden:
        return list(rows), None
    return [rows[index] for index in sorted(chosen)], Text(f"... and {len(hidden)} more: {states_text(hidden)}", style="dim")


def _folded(line: str, width: int) -> list[str]:
    """A line of prose as a terminal can show it; paths and commands, which are indented, stay whole, to be copied."""
    if len(line) <= width or line.startswith(" "):
        return [line]
    return textwrap.wrap(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _height(lines: Sequence[Text], width: int) -> int:
    return sum(1 + max(0, len(line) - 1) // width for line in lines)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3].rstrip() + "..."


def _hours_head(look: Look) -> str:
    return "CPU-h" if totals([row.spent for row in look.rows]).keys() == {"cpu"} else "GPU-h"


def _hours_cell(look: Look, row: RunProgress) -> str:
    if row.spent is None:
        return "-"
    unit = " CPU" if row.spent.device == "cpu" and _hours_head(look) == "GPU-h" else ""
    return f"{_hours(row.spent.hours)}{unit}"


def _hours(hours: float) -> str:
    return f"{hours:.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 100 else f"{seconds:.1f}"
