"""Watching a sweep that has been launched, until nobody has a run of it any more; and how it ended, in words and an exit code.

Reads run folders and asks the queue now and then; decides and writes nothing.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

from hpc import launch_text, queues, trials
from hpc.launch_session import Session
from hpc.paths import Plan, Submissions
from hpc.progress_view import RunProgress, progress_of, showing
from hpc.states import OWNED, Queue, RunState, run_states

_ASK_EVERY_S = 15.0


def wait(session: Session, send_more: Callable[[], bool] = lambda: False) -> int:
    """Show progress until nobody has a run of the sweep any more; interrupting it leaves the jobs alone.

    send_more: called before the queue is asked; it may send what there was no room for, and says whether something is left to send.
    """
    asked_at, queue = 0.0, Queue()
    plan = Plan.read(session.sweep)
    try:
        with showing(session.console) as show:
            while True:
                if time.monotonic() - asked_at >= _ASK_EVERY_S or not asked_at:
                    has_more = send_more()
                    plan = Plan.read(session.sweep)
                    queue, asked_at = queues.look(session.sweep, plan, Submissions.read(session.sweep).submissions), time.monotonic()
                    states = look(session, plan, queue)
                    if not has_more and not any(state.state in OWNED for state in states):
                        show(partial(_rows, states), True)
                        return ending(session, states)
                show(partial(_look_again, session, plan, queue), False)
                time.sleep(1.0)
    except KeyboardInterrupt:
        session.say("no longer watching; the jobs go on", *launch_text.next_steps(session.sweep.path))
        return 1


def ending(session: Session, states: Sequence[RunState]) -> int:
    """Say how it ended; 0 if every run of the sweep is finished."""
    finished = sum(state.state == "finished" for state in states)
    tried = [f"smoke test failed: {line}" for line in trials.failures(session.sweep)] if session.request.smoke else []
    said = [f"{finished} of {len(states)} runs finished", *tried, *launch_text.failures(states)]
    session.say(*said, *launch_text.next_steps(session.sweep.path))
    return 0 if finished == len(states) else 1


def look(session: Session, plan: Plan, queue: Queue) -> list[RunState]:
    """The states of the runs that the sweep asks for now."""
    epochs = {run.run_id: run.config.train.epochs for run in session.runs}
    return [state for state in run_states(session.sweep, plan, queue, epochs) if state.run_id in epochs]


def _look_again(session: Session, plan: Plan, queue: Queue) -> list[RunProgress]:
    return _rows(look(session, plan, queue))


def _rows(states: Sequence[RunState]) -> list[RunProgress]:
    return [progress_of(state) for state in states]
