"""What a launch says: its plan in words, what a dry run would send, how it ended and which command comes next."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpc import code_snapshot, local, packing, relaunch, trials
from hpc.draft import LEFT, Batch, Draft
from hpc.estimate import Estimate
from hpc.login_data import data_text, distinct_data
from hpc.plan_view import ArmRow, PlanSummary, count
from hpc.progress_view import one_line
from hpc.shapes import TaskShape
from hpc.states import OWNED, RunState, label
from seresnet import cleaned, provenance
from seresnet.checkpoint_files import list_checkpoints

if TYPE_CHECKING:
    from hpc.launch_session import Session


def room(session: "Session") -> local.Room:
    """How much this machine trains at a time."""
    return local.Room(cores=local.cores(), max_parallel=session.request.max_parallel or session.site.max_parallel)


def draft_summary(draft: Draft, room: local.Room, known: Estimate | None = None) -> PlanSummary:
    """The draft as print_plan shows it."""
    states = {state.run_id: state.state for state in draft.states}
    sent = set(draft.sent_run_ids)
    arms = []
    for name, run_ids in draft.plan.arms.items():
        ranks = tuple(draft.runs[run_id].config.train.ranks for run_id in run_ids)
        to_send = sum(run_id in sent for run_id in run_ids)
        arms.append(ArmRow(name=name, ranks=ranks, states=tuple(states[run_id] for run_id in run_ids), to_send=to_send))
    return PlanSummary(
        sweep=f"{draft.spec.name} ({draft.spec.path})",
        folder=str(draft.sweep.path),
        site=_site_text(draft, room),
        code=_code_text(draft) if draft.batches else None,
        data=tuple(data_text(config) for config in distinct_data(list(draft.runs.values()))),
        arms=tuple(arms),
        states=tuple(state.state for state in draft.states),
        task_shapes=tuple(_shape(draft, batch, pack) for batch in draft.batches for pack in batch.packs),
        runs_to_send=len(sent),
        is_local=draft.is_local,
        notes=tuple(_notes(draft)),
        estimate=known.lines() if known else (),
    )


def _shape(draft: Draft, batch: Batch, pack: Sequence[str]) -> TaskShape:
    # A local launch has tasks of all shapes in one batch.
    return packing.shape_of(draft.runs[pack[0]], draft.spec.pack) if draft.is_local else batch.shape


def nothing_left_text(draft: Draft) -> str:
    """Why nothing is sent."""
    waiting = [state for state in draft.states if state.state not in ("finished", *LEFT)]
    if draft.left_missing:
        return f"nothing to send: no run is what --retry names, and {count(len(draft.left_missing), 'run')} a plain launch would send"
    if draft.left_failed:
        became = {"failed": "has failed", "cancelled": "was cancelled"}
        words = dict.fromkeys(became.get(state.state, f"is {state.state}") for state in draft.left_failed)
        return f"nothing to send: what is left {' or '.join(words)}"
    if waiting:
        return f"nothing to send: {len(waiting)} of {len(draft.states)} runs are on their way"
    return f"nothing left: all {len(draft.states)} runs are finished"


def edited_since(draft: Draft) -> list[str]:
    """What finished runs do not have: edits since their code was sent."""
    if not (changes := draft.code.changes):
        return []
    named = ", ".join(changes[:3]) + (f" and {len(changes) - 3} more" if len(changes) > 3 else "")
    return [f"note: the code was edited since ({named}); finished runs stay as they are, --rerun all trains them again with it"]


def failures(states: Sequence[RunState]) -> list[str]:
    """A line or two for each run that ended badly: class, reason and where to read on."""
    lines = []
    for state in states:
        if state.state in ("failed", "cancelled", "lost"):
            what = one_line(state.reason) if state.ending else "its process is gone and said nothing"
            lines.append(f"{state.slug}: {label(state.state, state.ending)}: {what}\n    log: {state.folder.log}")
    return lines


def next_steps(sweep: Path) -> list[str]:
    """The commands that come after a launch."""
    folder = shlex.quote(str(sweep))
    return [f"progress: python -m hpc.status {folder}", f"table:    python -m hpc.collect {folder}"]


def made_tables(sweep: Path, since: float) -> list[str]:
    """Where the table and the page are that the task wrote which ended the last run; since: unix time of the launch."""
    made = [path for name in ("table.md", "report.html") if _is_since(path := sweep / name, since)]
    return [f"written: {' '.join(map(str, made))}"] if made else []


def _is_since(path: Path, since: float) -> bool:
    try:
        return path.stat().st_mtime >= since
    except OSError:
        return False


def _site_text(draft: Draft, room: local.Room) -> str:
    if draft.is_local:
        where = "this machine" if draft.site.scheduler == "local" else f"this machine instead of {draft.site.name}"
        return f"{where}, {room}"
    site = draft.site
    asked = {"account": site.account, "partition": site.partition, "qos": site.qos, "constraint": site.constraint}
    parts = [f"{key} {value}" for key, value in asked.items() if value]
    return ", ".join([f"{site.name}: {site.walltime_min} min a task, {site.cpus_per_rank} cores a rank", *parts])


def _code_text(draft: Draft) -> str:
    number, is_taken = draft.code.number, draft.code.is_taken
    is_working_copy = number == draft.code.working
    commit, is_dirty = provenance.commit_and_dirty(code_snapshot.ROOT if is_working_copy else draft.sweep.code(number))
    changed = ", with uncommitted changes" if commit and is_dirty else ""
    return f"{number}{'' if is_taken else ' (new)'}, {f'commit {commit[:12]}' if commit else 'no commit known'}{changed}"


def _shared(draft: Draft) -> list[tuple[tuple[str, ...], list[str]]]:
    """Arms that have runs in common, as an override that undoes an arm's only difference makes them: easily overlooked."""
    by_arms: dict[tuple[str, ...], list[str]] = {}
    for run_id, planned in draft.plan.runs.items():
        if len(planned.arms) > 1:
            by_arms.setdefault(planned.arms, []).append(run_id)
    return list(by_arms.items())


def _notes(draft: Draft) -> list[str]:
    notes = [f"note: {note}" for note in draft.spec.notes]
    notes += [f"note: {count(len(shared), 'run')} shared by {' and '.join(arms)}, trained once" for arms, shared in _shared(draft)]
    if draft.problem:
        notes.append(f"note: {draft.problem}, so runs of earlier submissions count as queued")
    if draft.batches and not draft.is_started:
        notes += [f"note: the last smoke test failed: {line}" for line in trials.failures(draft.sweep)]
    return [*_edit_notes(draft), *notes, *_code_notes(draft), *_left_notes(draft), *_wandb_notes(draft)]


def _wandb_notes(draft: Draft) -> list[str]:
    from hpc import mirror_process

    return [mirror_process.plan_line(draft.spec.wandb.mode, os.environ)] if draft.batches else []


def _edit_notes(draft: Draft) -> list[str]:
    notes = [f"edited: {draft.diff}"] if str(draft.diff) else []
    notes += [relaunch.LONGER_IS_OTHER] if relaunch.is_longer_alone(draft.sweep, draft.plan, draft.diff, draft.runs) else []
    sent = set(draft.sent_run_ids) | set(draft.unsent)
    longer = sum(state.state == "extend" and state.run_id in sent - draft.rerun for state in draft.states)
    notes += [f"extend {count(longer, 'run')}: finished, and more epochs are asked for now"] if longer else []
    notes += _cleaned_notes([state for state in draft.states if state.state == "extend" and state.run_id in sent - draft.rerun])
    notes += [f"note: {count(len(draft.rerun), 'run')} set aside and trained again from the start"] if draft.rerun else []
    asleep = sum(not entry.arms and not entry.dropped for entry in draft.plan.runs.values())
    if asleep:
        notes.append(f"note: {count(asleep, 'earlier run')} no longer asked for, left alone; --drop-removed cancels what is queued of them")
    return notes


def _cleaned_notes(longer: Sequence[RunState]) -> list[str]:
    """Runs that go on from earlier than they were, because hpc.clean has removed where they were."""
    steps = {run.slug: max((name.step for name in list_checkpoints(run.folder)), default=None) for run in longer}
    words = {run.slug: cleaned.going_on(run.folder, steps[run.slug]) for run in longer}
    return [f"note: {slug}: {text}" for slug, text in words.items() if text]


def _code_notes(draft: Draft) -> list[str]:
    """What the edit of the code means for what was sent before."""
    code = draft.code
    if not (code.changes and draft.batches):
        return []
    if code.number == code.before:
        return [f"note: the code was edited since ({count(len(code.changes), 'file')}); these runs get the old one, code/{code.number}"]
    queued = sum(state.state in OWNED for state in draft.states)
    keep = f"; {count(queued, 'run')} that somebody has keep theirs" if queued else ""
    edited = f"note: the code was edited since code/{code.before} ({count(len(code.changes), 'file')})"
    if not draft.is_started:
        return [f"{edited}: nothing has started, so they start with code/{code.number}{keep}"]
    return [f"{edited}: go on with code/{code.number}{keep}" if code.is_chosen else f"{edited}{keep}"]


def _left_notes(draft: Draft) -> list[str]:
    notes = []
    if draft.unsent_packs:
        notes.append(f"note: {count(len(draft.unsent_packs), 'task')} more than this cluster takes now")
    if draft.left_missing and draft.batches:
        notes.append(f"note: {count(len(draft.left_missing), 'missing run')} not sent, because --retry sends what it names alone")
    for word in LEFT:
        left = [state for state in draft.left_failed if state.state == word]
        names = ", ".join(f"{state.slug} ({state.ending})" if state.ending else state.slug for state in left[:5])
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        notes += [f"note: {word} and not sent again without --retry {word}: {names}{more}"] if left else []
    return notes
