"""Sending a draft to SLURM: checked against the cluster's limits, cut into arrays, written down, then one sbatch an array.

What is written, and in which order, is hpc.launch_write's business. One invariant: sbatch is called only under the sweep's lock, which it
holds as well, so that nobody plans while a submission of a launcher that was killed is still on its way.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from hpc import launch_arrays, launch_text, launch_watch, limits, queues, renewal, slurm, trials
from hpc.draft import Batch, Draft
from hpc.launch_session import Session, planning
from hpc.launch_write import write_launch
from hpc.limits import Limits
from hpc.login_data import distinct_data
from hpc.paths import Plan, Submission, Submissions
from hpc.plan_view import count
from hpc.shapes import TaskShape
from hpc.site import require_account
from hpc.worker import Worker
from seresnet.errors import ConfigError, SubmissionError, ToolkitError

#: Pickles under a name that no job knows are being written right now, or were left by a launcher that was killed.
_LEFTOVER_S = 600.0


# --- before anything is written ---


def check(session: Session, draft: Draft) -> None:
    """Raise ConfigError with everything that this cluster would refuse or could never run. Writes nothing."""
    wanted = [(batch.shape, len(batch.packs)) for batch in draft.batches]
    faults = [*_faults(lambda: require_account(session.site)), *limits.faults(session.limits, session.site, wanted)]
    code = draft.sweep.code(draft.code.number).absolute()
    for shape, _ in wanted:
        faults += _faults(lambda shape=shape: parallel(session, shape))  # type: ignore[misc]
        faults += _faults(
            lambda shape=shape: slurm.check_script(  # type: ignore[misc]
                draft.sweep.logs.absolute(), code, session.site, shape, visible=visible(draft)
            )
        )
    if faults:
        raise ConfigError("\n".join(dict.fromkeys(faults)))


def _faults(look: Callable[[], object]) -> list[str]:
    try:
        look()
    except ToolkitError as error:
        return [str(error)]
    return []


def fitted(session: Session, draft: Draft, now: Limits | None = None) -> Draft:
    """The draft in arrays as this cluster takes them, without what there is no room for now; now: limits of this moment."""
    arrays = launch_arrays.cut(draft.batches, lambda tasks: limits.array_sizes(session.limits, tasks))
    room = limits.room(session.limits if now is None else now) if arrays else None
    if room is None:
        return replace(draft, batches=arrays)
    # The smoke test is a task, too.
    arrays, left = launch_arrays.take(arrays, max(0, room - int(session.request.smoke)))
    return replace(draft, batches=arrays, unsent_packs=left)


def refuse_held(session: Session) -> None:
    """Raise SubmissionError while the sweep is held."""
    from hpc import hold

    why = hold.why_held(session.sweep)
    if why is not None:
        raise SubmissionError(f"{session.sweep.path}: {why}. Nothing was sent. Say --release first.")


def visible(draft: Draft) -> list[Path]:
    """Folders that tasks read beside the sweep's: a container must be shown them."""
    return [Path(config.dir) for config in distinct_data(list(draft.runs.values())) if config.dir]


def parallel(session: Session, shape: TaskShape) -> int | None:
    """Tasks of an array that may run at a time under --max-gpus; raises ConfigError where not even one may."""
    from hpc import control

    cap = session.request.max_gpus
    return control.parallel_of(cap, shape) if cap and shape.gpus else None


# --- sending ---


def send(session: Session, prepare: Callable[[], Draft], text: Callable[[Draft], str]) -> int | None:
    """Send what is missing; None if there is nothing to send any more. prepare: a checked draft of this moment; text: of its plan."""
    with planning(session.sweep) as lock:
        # Once more, now alone: another launcher may have been faster while the data was prepared.
        draft = prepare()
        if not (draft.batches or draft.unsent):
            return None
        _submit(session, draft, lock, text(draft))
    if draft.unsent:
        session.say(_room_text(session, draft))
    session.say(*launch_text.next_steps(session.sweep.path))
    if session.request.wait:
        return launch_watch.wait(session, _Left(session, draft, text).send_more)
    return 0 if draft.batches else 1


class _Left:
    """Runs that there was no room for; with --wait they follow as others end."""

    def __init__(self, session: Session, draft: Draft, text: Callable[[Draft], str]) -> None:
        self.session, self.text, self.run_ids = session, text, frozenset(draft.unsent)
        self.is_tried = session.request.smoke and bool(draft.batches)

    def send_more(self) -> bool:
        """Send what there is room for now; whether something is still left. What sbatch refuses is said, and given up."""
        if not self.run_ids or (self.is_tried and not trials.has_passed(self.session.sweep)):
            return False  # what waits for the smoke test is watched as long as it is queued
        session = replace(self.session, request=replace(self.session.request, smoke=self.session.request.smoke and not self.is_tried))
        try:
            with planning(session.sweep) as lock:
                refuse_held(session)
                draft = fitted(session, session.draft(self.run_ids), limits.live_limits(session.site))
                if draft.batches:
                    _submit(session, draft, lock, self.text(draft))
                    self.is_tried = self.session.request.smoke
                self.run_ids = frozenset(draft.unsent)
        except ToolkitError as error:
            session.say(str(error))
            self.run_ids = frozenset()
        return bool(self.run_ids)


def _room_text(session: Session, draft: Draft) -> str:
    """For example "sent 100 of 500 tasks: MaxSubmit of QOS normal is 100 and 0 are queued; launch again when ..."."""
    sent, left = (sum(map(len, groups)) for groups in ([batch.packs for batch in draft.batches], [draft.unsent_packs]))
    why = limits.room_text(session.limits)
    then = "the rest follows as they end" if session.request.wait else "launch again when some have ended, or leave --wait running"
    return f"sent {sent} of {count(sent + left, 'task')}: {why}; {then}"


def _submit(session: Session, draft: Draft, lock: int, text: str) -> None:
    """Write everything, then call sbatch for each batch; what sbatch refused is done with."""
    _remove_leftovers(session)
    record, entries, plan = write_launch(session, draft, text)
    _restore_orphans(session, draft.submissions, record)
    drop_removed(session, draft, record)
    cap = session.request.max_gpus
    # Until cap_gpus has divided them, arrays follow each other: the sum of what may run is never above the cap.
    chained = launch_arrays.holding_gpus(record.submissions, list(draft.queue.tasks)) if cap else []
    smoke = _smoke(session, draft, plan, entries, record) if entries else None
    for index, (entry, batch) in enumerate(zip(entries, draft.batches, strict=True)):
        wants_gpus = bool(cap and batch.shape.gpus)
        depends = launch_arrays.dependency(smoke, chained if wants_gpus else [])
        try:
            job_id = _submit_array(session, draft, plan, entry, batch, lock, depends)
        except BaseException as error:
            is_sure = isinstance(error, slurm.SbatchRefusedError | ConfigError)
            _give_up(session, record, entries[index:] if is_sure else entries[index + 1 :])
            raise
        record = record.with_entry(replace(entry, job_id=job_id, state="submitted"))
        record.write(session.sweep)
        chained = [job_id] if wants_gpus else chained
        session.say(_sent_text(batch, job_id, smoke))
    _cap(session, plan, record)
    session.say(*renewal.renew(session.sweep))


def _submit_array(session: Session, draft: Draft, plan: Plan, entry: Submission, batch: Batch, lock: int, dependency: str | None) -> str:
    return slurm.submit_array(
        Worker(str(session.sweep.path.resolve())),
        entry.tasks,
        folder=session.sweep.logs.absolute(),
        code_dir=session.sweep.code(entry.code).absolute(),
        site=session.site,
        shape=batch.shape,
        job_name=queues.job_name(plan, entry.id),
        dependency=dependency,
        parallel=parallel(session, batch.shape),
        visible=visible(draft),
        keep_open=(lock,),
    )


def _cap(session: Session, plan: Plan, record: Submissions) -> None:
    """With --max-gpus: divide them among everything of this sweep that is queued by now."""
    from hpc import control

    if session.request.max_gpus and not session.is_local:
        session.say(*control.cap_gpus(session.sweep, plan, record.submissions, session.request.max_gpus))


def _sent_text(batch: Batch, job_id: str, smoke: str | None) -> str:
    runs, tasks = count(sum(map(len, batch.packs)), "run"), count(len(batch.packs), "task")
    after = f"; they wait for the smoke test, job {smoke}" if smoke else ""
    return f"sent {runs} as job {job_id}, {tasks} of {count(batch.shape.ranks, 'rank')}{after}"


def _give_up(session: Session, record: Submissions, entries: Sequence[Submission]) -> None:
    """What was certainly not sent is done with: a squeue that does not answer would leave its runs "queued" for ever."""
    for entry in entries:
        record = record.with_entry(replace(entry, state="done"))
    if entries:
        record.write(session.sweep)


# --- the smoke test ---


def _smoke(session: Session, draft: Draft, plan: Plan, entries: Sequence[Submission], record: Submissions) -> str | None:
    """Send the smoke test that the arrays wait for; its job id."""
    if not session.request.smoke:
        return None
    try:
        return send_trial(session, draft, plan, entries[0].code)
    except BaseException:
        _give_up(session, record, entries)
        raise


def send_trial(session: Session, draft: Draft, plan: Plan, code: str) -> str:
    """Send a smoke test or a calibration of what would be sent (of all runs where nothing is); its job id."""
    from hpc import trials

    kind: trials.Kind = "calibrate" if session.request.calibrate else "smoke"
    # Also of arms that there is no room for yet: what follows with --wait is not tried once more.
    ids = (*draft.sent_run_ids, *draft.unsent) or tuple(draft.runs)
    runs = trials.choose([draft.runs[run_id] for run_id in ids], kind)
    told = trials.prepare(session.sweep, runs, session.site, code=code, kind=kind)
    job_name = f"{plan.sweep}-{plan.salt}-{told.name.removeprefix(trials.PREFIX)}"
    job_id = trials.submit_smoke(session.sweep, told, session.site, job_name=job_name, visible=visible(draft))
    session.say(f"sent {trials.about(told)} as job {job_id}")
    return job_id


# --- what others left ---


def drop_removed(session: Session, draft: Draft, record: Submissions) -> None:
    """With --drop-removed: cancel the tasks that hold nothing but dropped runs, running ones too; others leave theirs out by themselves.

    The plan that says that they are dropped is durable before.
    """
    from hpc import slurm_control

    dropped = _tasks_of_dropped(draft) if session.request.drop_removed else frozenset()
    for entry in record.submissions:
        mine = [int(task.partition("/")[2]) for task in entry.tasks if task in dropped]
        if not mine:
            continue
        if entry.job_id is None:
            session.say(f"{count(len(mine), 'task')} of dropped runs train on this machine, until Ctrl-C in their launcher")
            continue
        refusals = slurm_control.cancel(slurm_control.tasks_of(entry.job_id, mine))
        session.say(*(refusals or [f"cancelled {count(len(mine), 'task')} of job {entry.job_id}, all of dropped runs"]))


def _tasks_of_dropped(draft: Draft) -> frozenset[str]:
    """Listed tasks in which nothing is left to do but dropped runs."""
    over = {state.run_id for state in draft.states if state.state == "finished"}
    over |= {run_id for run_id, entry in draft.plan.runs.items() if entry.dropped}
    return frozenset(task for task in draft.queue.tasks if over.issuperset(draft.plan.tasks.get(task, ())))


def tend(session: Session, draft: Draft) -> None:
    """What a launch does for arrays that are queued already, where it sends none: adopt, drop, cap, and what an --alter left over."""
    record = _adopt(session, draft)
    drop_removed(session, draft, record)
    _cap(session, draft.plan, record)
    session.say(*renewal.renew(session.sweep))


def _adopt(session: Session, draft: Draft) -> Submissions:
    """Write down the ids of arrays whose launcher died after sbatch."""
    record = draft.submissions
    for orphan in queues.adopt_orphans(draft.plan, record.submissions):
        record = record.with_entry(orphan)
    _restore_orphans(session, draft.submissions, record)
    if record != draft.submissions:
        record.write(session.sweep)
    return record


def _restore_orphans(session: Session, known: Submissions, record: Submissions) -> None:
    """Arrays whose launcher died after sbatch wait for their pickles, which nobody has given their names."""
    for entry in record.submissions:
        before = known.get(entry.id)
        if before is not None and before.job_id is None and entry.job_id is not None:
            minutes = int(entry.site.get("walltime_min", session.site.walltime_min))
            worker = Worker(str(session.sweep.path.resolve()))
            slurm.restore_pickles(worker, entry.tasks, entry.job_id, folder=session.sweep.logs, walltime_min=minutes)
            session.say(f"found job {entry.job_id} of submission {entry.id}, whose launcher had died")


def _remove_leftovers(session: Session) -> None:
    """Pickles and scripts of a launcher that was killed before sbatch answered: inodes, and nothing reads them."""
    for pattern in (".*-*.pkl", ".*.sh"):
        for path in session.sweep.logs.glob(pattern):
            if time.time() - path.stat().st_mtime > _LEFTOVER_S:
                path.unlink(missing_ok=True)
