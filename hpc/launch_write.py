"""What a launch writes: the sweep as it was asked for, run.yaml, code, the plan's text, the intent to submit, and then the plan.

In this order a launcher that is killed between any two of them does no harm. An intent without its tasks in plan.json was certainly not
sent, and tasks come into plan.json only below an intent, so that nobody waits for tasks that nobody sends. One invariant: all of it is
durable before sbatch is called.
"""

import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor

from hpc import draft as drafts
from hpc import queues
from hpc.code_snapshot import snapshot_code
from hpc.draft import Batch, Draft
from hpc.launch_session import Session
from hpc.paths import Plan, Submission, Submissions, next_number, next_set_aside, task_name
from seresnet.config import to_dict, to_dict_as_before
from seresnet.durable import fsync_folder, write_durably
from seresnet.run_folder import RunRecord

_WRITERS = 4


def write_launch(session: Session, draft: Draft, text: str) -> tuple[Submissions, list[Submission], Plan]:
    """Write everything that the draft's tasks read; returns the record, its new entries, one a batch, and the plan with their tasks."""
    _set_aside(session, draft)
    _write_sweep_yaml(session)
    _write_run_yamls(session, draft)
    code = send_code(draft)
    record = draft.submissions
    for orphan in queues.adopt_orphans(draft.plan, record.submissions):
        record = record.with_entry(orphan)
    cluster = queues.this_cluster() if not session.is_local else None
    entries, numbered = [], drafts.numbered(draft)
    for submission_id, batch in numbered:
        entry = _entry(session, submission_id, batch, code, cluster)
        record = record.with_entry(entry)
        entries.append(entry)
    plan = drafts.with_tasks(draft, numbered)
    write_durably(session.sweep.plan_text, text.encode())
    record.write(session.sweep)
    plan.write(session.sweep)
    return record, entries, plan


def write_edit(session: Session, plan: Plan) -> None:
    """The sweep as it is asked for now, where nothing is sent: arms were renamed, dropped or regrouped."""
    _write_sweep_yaml(session)
    plan.write(session.sweep)


def send_code(draft: Draft) -> str:
    """The number of the snapshot that the draft's tasks run; taken now if it is not there."""
    return draft.code.number if draft.code.is_taken else snapshot_code(draft.sweep.codes, user=draft.spec.code_root)


def _entry(session: Session, submission_id: str, batch: Batch, code: str, cluster: str | None) -> Submission:
    shape = batch.shape
    return Submission(
        id=submission_id,
        created=time.time(),
        code=code,
        mode="local" if session.is_local else "slurm",
        tasks=tuple(task_name(submission_id, index) for index in range(len(batch.packs))),
        state="submitted" if session.is_local else "intent",
        cluster=cluster,
        site=session.site.to_dict(),
        at_a_time=shape.at_a_time,
        # Here one machine is all there is.
        nodes=1 if session.is_local else shape.nodes,
        gpus=shape.gpus * shape.nodes if session.is_local else shape.gpus,
    )


def _set_aside(session: Session, draft: Draft) -> None:
    """Rename the folders of runs that are trained again: nothing is deleted, and a crash leaves runs that never started."""
    for run_id in sorted(draft.rerun):  # also those that there is no room for yet
        folder = session.sweep.run_folder(run_id, draft.plan)
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder.path, next_set_aside(folder))
    if draft.rerun:
        fsync_folder(session.sweep.path)


def _write_sweep_yaml(session: Session) -> None:
    """The sweep as it was asked for; an older one that differs is kept beside it."""
    path, text = session.sweep.sweep_yaml, session.spec.copy_text().encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        before = path.read_bytes()
        if before == text:
            return
        number = next_number([entry.stem.removeprefix("sweep.") for entry in session.sweep.path.glob("sweep.*.yaml")])
        write_durably(path.with_name(f"sweep.{number}.yaml"), before)
    write_durably(path, text)


def _write_run_yamls(session: Session, draft: Draft) -> None:
    # Of a thousand runs nearly all the time is spent waiting for fsync, which a disk does for several files at once.
    with ThreadPoolExecutor(max_workers=_WRITERS) as writers:
        for written in [writers.submit(_write_run_yaml, session, draft, run_id) for run_id in draft.sent_run_ids]:
            written.result()
    # Once for the names of all run folders, which RunFolder.create does for each.
    fsync_folder(session.sweep.path)


def _write_run_yaml(session: Session, draft: Draft, run_id: str) -> None:
    """run.yaml of a run that will be sent; what its first start pinned, and why it lost its tier, stays."""
    folder = session.sweep.run_folder(run_id, draft.plan)
    for path in (folder.path, folder.attempts, folder.checkpoints, folder.metrics):
        path.mkdir(parents=True, exist_ok=True)
    known, config = drafts.known_record(folder), draft.runs[run_id].config
    record = RunRecord(
        run_id=run_id,
        slug=draft.plan.runs[run_id].slug,
        config=to_dict_as_before(config, known.config) if known else to_dict(config),
        pinned=known.pinned if known else None,
        marks=known.marks if known else (),
    )
    if record != known:
        record.write(folder)  # also makes the names of the folders in it durable
