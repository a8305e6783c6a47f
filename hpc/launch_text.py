"""What a launch says: its plan in words, what a dry run would send, how it ended and which command comes next."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from hpc import code_snapshot, local, slurm
from hpc.draft import Draft, local_tasks
from hpc.login_data import data_text, distinct_data
from hpc.plan_view import ArmRow, PlanSummary, count
from hpc.progress_view import one_line
from hpc.queues import job_name
from hpc.states import RunState
from seresnet import provenance


def draft_summary(draft: Draft, room: local.Room) -> PlanSummary:
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
        task_ranks=tuple(max(draft.runs[run_id].config.train.ranks for run_id in pack) for batch in draft.batches for pack in batch.packs),
        runs_to_send=len(sent),
        notes=tuple(_notes(draft)),
    )


def print_dry_run(console: Console, draft: Draft) -> None:
    """What a launch would send: the commands or the sbatch scripts, and which runs are in which task."""
    console.print()
    if not draft.batches:
        console.print("dry run: nothing would be sent, nothing was written")
        return
    code = draft.sweep.code(code_snapshot.peek(draft.sweep.codes)[0])
    first = int(draft.submissions.next_id())
    for offset, batch in enumerate(draft.batches):
        if offset:
            console.print()
        submission_id = f"{first + offset:04d}"
        for index, pack in enumerate(batch.packs):
            slugs = ", ".join(draft.runs[run_id].slug for run_id in pack)
            console.print(Text(f"task {submission_id}/{index}: {slugs}"), soft_wrap=True)
        if not draft.is_local:
            name, remark = _job_name(draft, submission_id)
            console.print(Text(f"\n--- sbatch script of {submission_id}{remark} ---", style="bold"))
            text = slurm.script(draft.sweep.logs, code, draft.site, batch.shape, name, len(batch.packs))
            console.print(Text(text.rstrip()), soft_wrap=True)
    if draft.is_local:
        command = ["python", "-m", "hpc.supervisor", "--sweep", str(draft.sweep.path), "--task", local_tasks(draft, f"{first:04d}")[0].name]
        console.print(Text(f"each as a process here, such as: {shlex.join(command)}"), soft_wrap=True)
    console.print("dry run: nothing was written, nothing was sent")


def nothing_left_text(draft: Draft) -> str:
    """Why nothing is sent."""
    waiting = [state for state in draft.states if state.state not in ("finished", "failed")]
    if draft.left_missing:
        return f"nothing to send: no run is what --retry names, and {count(len(draft.left_missing), 'run')} a plain launch would send"
    if draft.left_failed:
        return "nothing to send: what is left has failed"
    if waiting:
        return f"nothing to send: {len(waiting)} of {len(draft.states)} runs are on their way"
    return f"nothing left: all {len(draft.states)} runs are finished"


def failures(states: Sequence[RunState]) -> list[str]:
    """A line or two for each run that ended badly: class, reason and where to read on."""
    lines = []
    for state in states:
        if state.state in ("failed", "cancelled", "lost"):
            what = f"{state.ending}: {one_line(state.reason)}" if state.ending else "its process is gone and said nothing"
            lines.append(f"{state.slug}: {state.state}: {what}\n    log: {state.folder.log}")
    return lines


def next_steps(sweep: Path) -> list[str]:
    """The commands that come after a launch."""
    folder = shlex.quote(str(sweep))
    return [f"progress: python -m hpc.status {folder}", f"table:    python -m hpc.collect {folder}"]


def _site_text(draft: Draft, room: local.Room) -> str:
    if draft.is_local:
        where = "this machine" if draft.site.scheduler == "local" else f"this machine instead of {draft.site.name}"
        return f"{where}, {room}"
    site = draft.site
    asked = {"account": site.account, "partition": site.partition, "qos": site.qos, "constraint": site.constraint}
    parts = [f"{key} {value}" for key, value in asked.items() if value]
    return ", ".join([f"{site.name}: {site.walltime_min} min a task, {site.cpus_per_rank} cores a rank", *parts])


def _code_text(draft: Draft) -> str:
    number, is_taken = code_snapshot.peek(draft.sweep.codes)
    commit, is_dirty = provenance.commit_and_dirty(code_snapshot.ROOT)
    changed = ", with uncommitted changes" if commit and is_dirty else ""
    return f"{number}{'' if is_taken else ' (new)'}, {f'commit {commit[:12]}' if commit else 'no commit known'}{changed}"


def _job_name(draft: Draft, submission_id: str) -> tuple[str, str]:
    """The array's name as it would be sent, and a remark where the first launch is still to draw a part of it."""
    if draft.sweep.plan.exists():
        return job_name(draft.plan, submission_id), ""
    return job_name(replace(draft.plan, salt="X" * 8), submission_id), " (XXXXXXXX: drawn at the first launch)"


def _shared(draft: Draft) -> list[tuple[tuple[str, ...], list[str]]]:
    """Arms that have runs in common, as an override that undoes an arm's only difference makes them: easily overlooked."""
    by_arms: dict[tuple[str, ...], list[str]] = {}
    for run_id, planned in draft.plan.runs.items():
        if len(planned.arms) > 1:
            by_arms.setdefault(planned.arms, []).append(run_id)
    return list(by_arms.items())


def _notes(draft: Draft) -> list[str]:
    notes = [f"note: {count(len(shared), 'run')} shared by {' and '.join(arms)}, trained once" for arms, shared in _shared(draft)]
    if draft.problem:
        notes.append(f"note: {draft.problem}, so runs of earlier submissions count as queued")
    dropped = sum(not entry.arms for entry in draft.plan.runs.values())
    if dropped:
        notes.append(f"note: {count(dropped, 'earlier run')} no longer asked for, left alone")
    if draft.left_missing and draft.batches:
        notes.append(f"note: {count(len(draft.left_missing), 'missing run')} not sent, because --retry sends what it names alone")
    if draft.left_failed:
        names = ", ".join(f"{state.slug} ({state.ending})" for state in draft.left_failed[:5])
        more = f" and {len(draft.left_failed) - 5} more" if len(draft.left_failed) > 5 else ""
        notes.append(f"note: failed and not sent again without --retry failed: {names}{more}")
    return notes
