"""The recipe of a launch: read, draft, show, refuse, prepare data, then send to SLURM or train here.

Deciding is hpc.draft's job, what an edit means hpc.relaunch's, writing hpc.launch_write's. One invariant: whatever is refused is refused
before anything is written.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from io import StringIO

from rich.console import Console
from rich.text import Text

from hpc import draft as drafts
from hpc import launch_dry, launch_here, launch_slurm, launch_text, launch_watch, local, own_program, relaunch, renewal
from hpc.draft import Draft
from hpc.estimate import Estimate, estimate
from hpc.launch_session import Request, Session, planning, understand
from hpc.launch_write import send_code, write_edit
from hpc.login_data import ensure_prepared
from hpc.paths import Plan
from hpc.plan_view import make_console, print_plan
from hpc.site import require_sbatch
from hpc.sweep import explain_sweep, read_sweep
from seresnet.errors import ConfigError, ToolkitError

__all__ = ["Request", "Session", "launch", "understand"]


def launch(request: Request, console: Console | None = None) -> int:
    """Do what the command line asks; returns the exit code. Raises ToolkitError; arrays that were sent before are named on the console."""
    console = console or make_console()
    if request.explain:
        spec = read_sweep(request.sweep_file, request.overrides)
        console.print(Text("\n".join(explain_sweep(spec, key) for key in request.explain)), soft_wrap=True)
        return 0
    session = understand(request, console)
    draft = session.draft()
    refusal = _refusal(session, draft)
    draft, room = _fitted(session, draft), launch_text.room(session)
    known = _estimate(session, draft, room, is_possible=refusal is None)
    print_plan(console, launch_text.draft_summary(draft, room, known))
    if refusal is not None:
        raise refusal
    if request.dry_run:
        launch_dry.print_dry_run(session, draft)
        return 0
    return _go(session, draft, room, known)


def _go(session: Session, draft: Draft, room: local.Room, known: Estimate) -> int:
    """Prepare the data and send; what is sent is decided anew, under the lock."""
    if not (draft.batches or draft.unsent) and not session.request.calibrate:
        return _nothing_to_send(session, draft)
    if not session.is_local:
        require_sbatch(session.site)
    ensure_prepared([draft.runs[run_id] for run_id in (*draft.sent_run_ids, *draft.unsent) or draft.runs])

    def prepare() -> Draft:
        now = session.draft()
        if (problem := _refusal(session, now)) is not None:
            raise problem
        return _fitted(session, now)

    def text(now: Draft) -> str:
        written = StringIO()
        print_plan(make_console(written), launch_text.draft_summary(now, room, known))
        return written.getvalue()

    if session.request.calibrate:
        return _calibrate(session, prepare)
    code = launch_here.train(session, prepare, text, room) if session.is_local else launch_slurm.send(session, prepare, text)
    return _nothing_to_send(session, session.draft()) if code is None else code


def _fitted(session: Session, draft: Draft) -> Draft:
    return draft if session.is_local else launch_slurm.fitted(session, draft)


def _estimate(session: Session, draft: Draft, room: local.Room, *, is_possible: bool) -> Estimate:
    shape = draft.batches[0].shape if draft.batches else None
    parallel = launch_slurm.parallel(session, shape) if shape and is_possible and not session.is_local else None
    return estimate(draft, room=room, parallel=parallel, ask_start=is_possible and shutil.which("sbatch") is not None)


# --- why not ---


def _refusal(session: Session, draft: Draft) -> ToolkitError | None:
    """Why this launch must not be, all reasons together; None if it may."""
    reasons = [_held, _code_changed, _no_trial, _cannot_run]
    faults = [str(problem) for look in reasons if (problem := _caught(look, session, draft)) is not None]
    return ConfigError("\n".join(faults)) if faults else None


def _caught(look: Callable[[Session, Draft], None], session: Session, draft: Draft) -> ToolkitError | None:
    try:
        look(session, draft)
    except ToolkitError as error:
        return error
    return None


def _held(session: Session, draft: Draft) -> None:
    if draft.batches:
        launch_slurm.refuse_held(session)


def _code_changed(session: Session, draft: Draft) -> None:
    if draft.batches and draft.code.changes and draft.is_started and not draft.code.is_chosen:
        raise ConfigError(relaunch.code_refusal(draft.sweep, draft.code))


def _no_trial(session: Session, draft: Draft) -> None:
    for option in [f"--{name}" for name in ("smoke", "calibrate") if getattr(session.request, name)]:
        own_program.refuse_programs([run.config for run in draft.runs.values()], option)


def _cannot_run(session: Session, draft: Draft) -> None:
    if session.is_local:
        launch_here.check(draft)
    else:
        launch_slurm.check(session, draft)


# --- nothing, or only a trial ---


def _nothing_to_send(session: Session, draft: Draft) -> int:
    is_edited = draft.plan != Plan.read_or_none(session.sweep)
    has_orphans = any(entry.state == "intent" for entry in draft.submissions.submissions)
    is_owed = bool(renewal.left(session.sweep))  # tasks that an --alter could not reach while they ran
    if is_edited or has_orphans or is_owed or session.request.drop_removed or session.request.max_gpus:
        with planning(session.sweep):
            draft = session.draft()
            # Arms were renamed, dropped or regrouped: the table shall show the sweep as it is asked for now.
            write_edit(session, draft.plan)
            launch_slurm.tend(session, draft)
    session.say(
        launch_text.nothing_left_text(draft),
        *launch_text.edited_since(draft),
        *launch_text.failures(draft.left_failed),
        *launch_text.next_steps(session.sweep.path),
    )
    if session.request.wait and relaunch.is_owned(draft.states):
        return launch_watch.wait(session)
    return 1 if draft.left_failed or draft.left_missing else 0


def _calibrate(session: Session, prepare: Callable[[], Draft]) -> int:
    """Time some steps of every shape; the next plan's estimates come from them. No run of the sweep is started."""
    if session.is_local:
        launch_here.try_first(session, prepare)
    else:
        with planning(session.sweep):
            draft = prepare()
            launch_slurm.send_trial(session, draft, drafts.with_tasks(replace(draft, batches=()), []), send_code(draft))
    session.say(f"then plan with what was measured: {session.request.command()} --dry-run")
    return 0
