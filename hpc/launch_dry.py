"""What `--dry-run` prints below the plan: which runs are in which task, and each array's sbatch script as it would be sent.

Writes nothing and sends nothing.
"""

import shlex
from dataclasses import replace

from rich.text import Text

from hpc import draft as drafts
from hpc import launch_slurm, slurm, trials
from hpc.draft import Batch, Draft
from hpc.launch_session import Session
from hpc.queues import job_name


def print_dry_run(session: Session, draft: Draft) -> None:
    """What a launch would send: the commands or the sbatch scripts, and which runs are in which task."""
    session.say("")
    if session.request.calibrate:
        session.say(f"{_trial_text(draft, 'calibrate')}, and nothing else", "dry run: nothing was written, nothing was sent")
        return
    if not draft.batches:
        session.say("dry run: nothing would be sent, nothing was written")
        return
    if session.request.smoke:
        session.say(f"{_trial_text(draft, 'smoke')}; what follows waits for its success")
    numbered = drafts.numbered(draft)
    for submission_id, batch in numbered:
        for index, pack in enumerate(batch.packs):
            session.say(f"task {submission_id}/{index}: {', '.join(draft.runs[run_id].slug for run_id in pack)}")
        if not draft.is_local:
            session.say("")
            _print_script(session, draft, submission_id, batch)
    if draft.is_local:
        command = ["python", "-m", "hpc.supervisor", "--sweep", str(draft.sweep.path), "--task", f"{numbered[0][0]}/0"]
        session.say(f"each as a process here, such as: {shlex.join(command)}")
    session.say("dry run: nothing was written, nothing was sent")


def _trial_text(draft: Draft, kind: trials.Kind) -> str:
    runs = trials.choose([draft.runs[run_id] for run_id in (*draft.sent_run_ids, *draft.unsent) or draft.runs], kind)
    what = "smoke test" if kind == "smoke" else "timing"
    return f"first a {what} of {trials.STEPS} steps each, one after another: {', '.join(run.slug for run in runs)}"


def _print_script(session: Session, draft: Draft, submission_id: str, batch: Batch) -> None:
    name, remark = _job_name(draft, submission_id)
    session.console.print(Text(f"--- sbatch script of {submission_id}{remark} ---", style="bold"))
    code, parallel = draft.sweep.code(draft.code.number), launch_slurm.parallel(session, batch.shape)
    visible = launch_slurm.visible(draft)
    text = slurm.script(draft.sweep.logs, code, draft.site, batch.shape, name, len(batch.packs), parallel=parallel, visible=visible)
    session.say(text.rstrip())


def _job_name(draft: Draft, submission_id: str) -> tuple[str, str]:
    """The array's name as it would be sent, and a remark where the first launch is still to draw a part of it."""
    if draft.sweep.plan.exists():
        return job_name(draft.plan, submission_id), ""
    return job_name(replace(draft.plan, salt="X" * 8), submission_id), " (XXXXXXXX: drawn at the first launch)"
