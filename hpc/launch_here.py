"""Training a draft on this machine: written down like any launch, then its tasks as child processes (hpc.local), to their end.

One invariant: from the moment at which the plan names the tasks, a lock says that this launcher has them, for as long as it lives.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from hpc import draft as drafts
from hpc import launch_text, launch_watch, local, locks
from hpc.draft import Draft
from hpc.launch_session import Session, planning
from hpc.launch_write import send_code, write_launch
from hpc.paths import Submission, Submissions
from hpc.progress_view import RunProgress, progress_of
from hpc.states import Queue
from seresnet.errors import SubmissionError


def check(draft: Draft) -> None:
    """Raise SubmissionError for a task that this machine can never run."""
    local.check_fits(drafts.local_tasks(draft, drafts.numbered(draft)))


def train(session: Session, prepare: Callable[[], Draft], text: Callable[[Draft], str], room: local.Room) -> int | None:
    """Train what is missing; None if there is nothing any more. prepare: a checked draft of this moment; text: of its plan."""
    if session.request.smoke:
        try_first(session, prepare)
    with ExitStack() as held:
        with planning(session.sweep):
            draft = prepare()
            if not draft.batches:
                return None
            numbered = drafts.numbered(draft)
            session.sweep.logs.mkdir(exist_ok=True)
            # Taken before the plan names the tasks: it tells other launchers that these have somebody.
            for submission_id, _ in numbered:
                held.enter_context(locks.holding(session.sweep.local_lock(submission_id)))
            _, entries, plan = write_launch(session, draft, text(draft))
        mine, began = [task for entry in entries for task in entry.tasks], time.time()

        def look(listed: local.Listed) -> Sequence[RunProgress]:
            queue = Queue(tasks=listed, asked=frozenset(mine))
            return [progress_of(state) for state in launch_watch.look(session, plan, queue)]

        was_stopped = local.run_local(session.sweep, entries[0], drafts.local_tasks(draft, numbered), room, session.console, look)
    _note_done(session, entries)
    if was_stopped:
        session.say(f"stopped; go on with: {session.request.command()}")
    code = launch_watch.ending(session, launch_watch.look(session, plan, Queue()))
    session.say(*launch_text.made_tables(session.sweep.path, began))
    return code


def try_first(session: Session, prepare: Callable[[], Draft]) -> None:
    """Smoke test or calibrate here, in the code that will be sent. Raises SubmissionError when it fails: nothing is sent then."""
    from hpc import trials

    kind: trials.Kind = "calibrate" if session.request.calibrate else "smoke"
    with planning(session.sweep):
        draft = prepare()
        runs = trials.choose([draft.runs[run_id] for run_id in draft.sent_run_ids or tuple(draft.runs)], kind)
        told = trials.prepare(session.sweep, runs, session.site, code=send_code(draft), kind=kind)
    session.say(trials.about(told))
    if code := trials.run_here(session.sweep, told):
        what = "was stopped" if code == 75 else "failed"
        raise SubmissionError(f"{trials.about(told)} {what} (exit {code}). Nothing was sent.")


def _note_done(session: Session, entries: Sequence[Submission]) -> None:
    with planning(session.sweep, is_begun=True):
        record = Submissions.read(session.sweep)
        for entry in entries:
            record = record.with_entry(replace(entry, state="done"))
        record.write(session.sweep)
