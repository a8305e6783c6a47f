"""The recipe of a launch: read, draft, show, prepare data, write, submit; locally, or to SLURM.

Deciding is draft's job, talking to SLURM is slurm's, running here is local's. One invariant: what a task reads (plan, run.yaml, code)
and the intent to submit it are durable before sbatch is called.
"""

import contextlib
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from hpc import draft as drafts
from hpc import launch_text, local, locks, queues, slurm
from hpc.code_snapshot import snapshot_code
from hpc.draft import Batch, Draft
from hpc.login_data import ensure_prepared, with_absolute_data
from hpc.paths import Plan, Submission, Submissions, SweepFolder, next_number, task_name
from hpc.plan_view import count, make_console, print_plan
from hpc.progress_view import RunProgress, progress_of, showing
from hpc.site import Site, read_site, require_account, require_sbatch
from hpc.states import OWNED, Queue, RunState, run_states
from hpc.sweep import PlannedRun, SweepSpec, expand, explain_sweep, read_sweep
from seresnet.config import to_dict
from seresnet.durable import write_durably
from seresnet.errors import SubmissionError
from seresnet.run_folder import RunRecord

#: Another launcher holds the lock only while it plans and writes; a snapshot on a slow file system takes seconds.
_LOCK_WAIT_S = 120.0
_ASK_EVERY_S = 15.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """A command line, understood."""

    sweep_file: Path
    overrides: tuple[str, ...] = ()
    runs_dir: Path | None = None
    dry_run: bool = False
    local: bool = False
    max_parallel: int | None = None
    retry: tuple[str, ...] = ()
    explain: tuple[str, ...] = ()
    wait: bool = False
    max_gpus: int | None = None
    code: Literal["snapshot", "new"] | None = None
    rerun: tuple[str, ...] = ()
    drop_removed: bool = False
    renamed: bool = False
    smoke: bool = False
    calibrate: bool = False

    def command(self) -> str:
        """The command that takes this launch up again."""
        words = ["python", "-m", "hpc.launch", "--sweep", str(self.sweep_file), *self.overrides]
        words += ["--runs-dir", str(self.runs_dir)] if self.runs_dir else []
        words += ["--local"] if self.local else []
        return shlex.join([*words, "--max-parallel", str(self.max_parallel)] if self.max_parallel else words)


@dataclass(frozen=True, kw_only=True)
class _Session:
    """What stays the same from the first look to the last."""

    request: Request
    spec: SweepSpec
    runs: tuple[PlannedRun, ...]
    sweep: SweepFolder
    site: Site
    is_local: bool
    console: Console

    def draft(self) -> Draft:
        return drafts.make_draft(self.spec, self.runs, self.sweep, self.site, is_local=self.is_local, retry=self.request.retry)

    def say(self, *lines: str) -> None:
        for line in lines:
            self.console.print(Text(line), soft_wrap=True)


def launch(request: Request, console: Console | None = None) -> int:
    """Do what the command line asks; returns the exit code. Raises ToolkitError; arrays that were sent before are named on the console."""
    console = console or make_console()
    spec = read_sweep(request.sweep_file, request.overrides)
    if request.explain:
        console.print(Text("\n".join(explain_sweep(spec, key) for key in request.explain)), soft_wrap=True)
        return 0
    session = _understood(request, spec, console)
    draft = session.draft()
    room = local.Room(cores=local.cores(), max_parallel=request.max_parallel or session.site.max_parallel)
    print_plan(console, launch_text.draft_summary(draft, room))
    if not session.is_local:
        require_account(session.site)
    if request.dry_run:
        launch_text.print_dry_run(console, draft)
        return 0
    if draft.batches:
        _check_can_run(session, draft)
        ensure_prepared([draft.runs[run_id] for run_id in draft.sent_run_ids])
        return _train_here(session, room) if session.is_local else _send_to_slurm(session)
    return _nothing_to_send(session, draft)


def _understood(request: Request, spec: SweepSpec, console: Console) -> _Session:
    site = read_site(spec.site.asked, where=spec.site.where, origins=spec.site.origins)
    runs_dir = request.runs_dir or site.folder("runs_dir") or Path("runs")
    return _Session(
        request=request,
        spec=spec,
        runs=tuple(with_absolute_data(run, site) for run in expand(spec)),
        sweep=SweepFolder(runs_dir / spec.name),
        site=site,
        is_local=request.local or site.scheduler == "local",
        console=console,
    )


def _check_can_run(session: _Session, draft: Draft) -> None:
    if session.is_local:
        local.check_fits(drafts.local_tasks(draft, draft.submissions.next_id()))
    else:
        require_sbatch(session.site)


def _nothing_to_send(session: _Session, draft: Draft) -> int:
    if draft.plan != Plan.read_or_none(session.sweep):
        # Arms were renamed, dropped or regrouped: the table shall show the sweep as it is asked for now.
        with _planning(session.sweep):
            _write_sweep_yaml(session)
            session.draft().plan.write(session.sweep)
    session.say(launch_text.nothing_left_text(draft), *launch_text.failures(draft.left_failed), *launch_text.next_steps(session.sweep.path))
    if session.request.wait and drafts.is_owned(draft):
        return _wait(session)
    return 1 if draft.left_failed or draft.left_missing else 0


# --- SLURM ---


def _send_to_slurm(session: _Session) -> int:
    with _planning(session.sweep):
        # Once more, now alone: another launcher may have been faster while the data was prepared.
        draft = session.draft()
        if draft.batches:
            _submit(session, draft)
    if not draft.batches:
        return _nothing_to_send(session, draft)
    session.say(*launch_text.next_steps(session.sweep.path))
    return _wait(session) if session.request.wait else 0


def _submit(session: _Session, draft: Draft) -> None:
    """Write everything, then call sbatch for each batch; what sbatch refused is done with."""
    from hpc.worker import Worker

    record, entries = _write(session, draft, "slurm")
    worker = Worker(str(session.sweep.path.resolve()))
    for entry, batch in zip(entries, draft.batches, strict=True):
        try:
            job_id = slurm.submit_array(
                worker,
                entry.tasks,
                folder=session.sweep.logs.absolute(),
                code_dir=session.sweep.code(entry.code).absolute(),
                site=session.site,
                shape=batch.shape,
                job_name=queues.job_name(draft.plan, entry.id),
            )
        except slurm.SbatchRefusedError:
            # Without this a squeue that does not answer would leave the runs "queued" for ever.
            record.with_entry(replace(entry, state="done")).write(session.sweep)
            raise
        record = record.with_entry(replace(entry, job_id=job_id, state="submitted"))
        record.write(session.sweep)
        runs, tasks = count(sum(map(len, batch.packs)), "run"), count(len(entry.tasks), "task")
        session.say(f"sent {runs} as job {job_id}, {tasks} of {count(batch.shape.ranks, 'rank')}")


def _wait(session: _Session) -> int:
    """Show progress until nobody has a run of the sweep any more; interrupting it leaves the jobs alone."""
    plan, asked_at, queue = Plan.read(session.sweep), 0.0, Queue()
    try:
        with showing(session.console) as show:
            while True:
                if time.monotonic() - asked_at >= _ASK_EVERY_S or not asked_at:
                    queue, asked_at = queues.look(session.sweep, plan, Submissions.read(session.sweep).submissions), time.monotonic()
                    states = _states(session, plan, queue)
                    if not any(state.state in OWNED for state in states):
                        show(lambda states=states: [progress_of(state) for state in states], True)  # type: ignore[misc]
                        return _ending(session, states)
                show(lambda queue=queue: [progress_of(state) for state in _states(session, plan, queue)], False)  # type: ignore[misc]
                time.sleep(1.0)
    except KeyboardInterrupt:
        session.say("no longer watching; the jobs go on", *launch_text.next_steps(session.sweep.path))
        return 1


# --- this machine ---


def _train_here(session: _Session, room: local.Room) -> int:
    with ExitStack() as held:
        with _planning(session.sweep):
            draft = session.draft()
            if draft.batches:
                entry = _write(session, draft, "local")[1][0]
                # Taken before anybody else may plan: it tells other launchers that these tasks have somebody.
                held.enter_context(locks.holding(session.sweep.local_lock(entry.id)))
        if not draft.batches:
            return _nothing_to_send(session, draft)
        plan = Plan.read(session.sweep)

        def look(listed: local.Listed) -> Sequence[RunProgress]:
            queue = Queue(tasks=listed, asked=frozenset(entry.tasks))
            return [progress_of(state) for state in _states(session, plan, queue)]

        was_stopped = local.run_local(session.sweep, entry, drafts.local_tasks(draft, entry.id), room, session.console, look)
    with _planning(session.sweep):
        Submissions.read(session.sweep).with_entry(replace(entry, state="done")).write(session.sweep)
    if was_stopped:
        session.say(f"stopped; go on with: {session.request.command()}")
    return _ending(session, _states(session, plan, Queue()))


def _ending(session: _Session, states: Sequence[RunState]) -> int:
    """Say how it ended; 0 if every run of the sweep is finished."""
    finished = sum(state.state == "finished" for state in states)
    session.say(f"{finished} of {len(states)} runs finished", *launch_text.failures(states), *launch_text.next_steps(session.sweep.path))
    return 0 if finished == len(states) else 1


def _states(session: _Session, plan: Plan, queue: Queue) -> list[RunState]:
    epochs = {run.run_id: run.config.train.epochs for run in session.runs}
    return [state for state in run_states(session.sweep, plan, queue, epochs) if state.run_id in epochs]


# --- writing ---


@contextmanager
def _planning(sweep: SweepFolder) -> Iterator[None]:
    """Be the only launcher that plans in this sweep's folder. Raises SubmissionError where the folder cannot be written."""
    try:
        with locks.holding(sweep.launch_lock, wait_s=_LOCK_WAIT_S) as is_mine:
            if not is_mine:
                raise SubmissionError(
                    f"{sweep.path}: another launcher has been at work here for {_LOCK_WAIT_S:.0f} s. Try again when it is done."
                )
            yield
    except OSError as error:
        # A full disk names no file.
        raise SubmissionError(f"{error.filename or sweep.path}: {error.strerror or error}. Correct that, or say --runs-dir.") from error


def _write(session: _Session, draft: Draft, mode: Literal["slurm", "local"]) -> tuple[Submissions, list[Submission]]:
    """Everything that tasks read, then the plan, then the intent; the order in which a crash does no harm."""
    _write_sweep_yaml(session)
    for run_id in draft.sent_run_ids:
        _write_run_yaml(session, draft, run_id)
    code = snapshot_code(session.sweep.codes)
    record = draft.submissions
    for orphan in queues.adopt_orphans(draft.plan, record.submissions):
        record = record.with_entry(orphan)
    entries, numbered = [], []
    for batch in draft.batches:
        entry = _entry(session, record.next_id(), batch, code, mode)
        record = record.with_entry(entry)
        entries.append(entry)
        numbered.append((entry.id, batch))
    drafts.with_tasks(draft, numbered).write(session.sweep)
    record.write(session.sweep)
    return record, entries


def _entry(session: _Session, submission_id: str, batch: Batch, code: str, mode: Literal["slurm", "local"]) -> Submission:
    return Submission(
        id=submission_id,
        created=time.time(),
        code=code,
        mode=mode,
        tasks=tuple(task_name(submission_id, index) for index in range(len(batch.packs))),
        state="intent" if mode == "slurm" else "submitted",
        cluster=queues.this_cluster() if mode == "slurm" else None,
        site=session.site.to_dict(),
    )


def _write_sweep_yaml(session: _Session) -> None:
    """The sweep as it was asked for; an older one that differs is kept beside it."""
    path, text = session.sweep.sweep_yaml, session.spec.copy_text().encode()
    with contextlib.suppress(FileNotFoundError):
        before = path.read_bytes()
        if before == text:
            return
        number = next_number([entry.stem.removeprefix("sweep.") for entry in session.sweep.path.glob("sweep.*.yaml")])
        write_durably(path.with_name(f"sweep.{number}.yaml"), before)
    write_durably(path, text)


def _write_run_yaml(session: _Session, draft: Draft, run_id: str) -> None:
    """run.yaml of a run that will be sent; what its first start pinned, and why it lost its tier, stays."""
    folder = session.sweep.run_folder(run_id, draft.plan)
    folder.create()
    known = drafts.known_record(folder)
    record = RunRecord(
        run_id=run_id,
        slug=draft.plan.runs[run_id].slug,
        config=to_dict(draft.runs[run_id].config),
        pinned=known.pinned if known else None,
        marks=known.marks if known else (),
    )
    if record != known:
        record.write(folder)
