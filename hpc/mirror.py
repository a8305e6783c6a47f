"""python -m hpc.mirror SWEEP: publish the journals of a sweep's runs to W&B, from a process of its own. The only importer of wandb.

The journal is the record, W&B a copy of it, one row an epoch. One function (publish) serves first start, resume, offline and repair.
One invariant: nothing that happens here changes a run's outcome; every failure is one warning line, and the exit code is 0.
"""

import argparse
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from hpc import mirror_cursor, mirror_end, mirror_process, mirror_rows
from hpc.mirror_cursor import Closing, Cursor
from hpc.mirror_end import Stop
from hpc.mirror_process import Mode
from hpc.mirror_state import StateFile
from hpc.paths import Plan, SweepFolder
from seresnet import claims
from seresnet.errors import ToolkitError
from seresnet.pinning import refuse_other_run
from seresnet.run_folder import RunFolder, RunRecord, TrainResult, is_finished

log = logging.getLogger("hpc.mirror")

POLL_S = 2.0
#: How often a server is asked whether it is still there, when it has something to take.
ASK_S = 30.0
INIT_TIMEOUT_S = 20.0  # a busy node; the training does not wait for it

_MOST_RESTARTS = 3


@dataclass
class Published:
    """One run of the sweep, and its W&B run while that is open."""

    run_id: str
    slug: str
    folder: RunFolder
    state: StateFile
    mode: Mode = "offline"  # in which run is open
    run: Any = None
    epoch: int = 0  # newest epoch handed over
    heard: int = 0  # newest epoch handed over when the server was last heard of
    lock: IO[bytes] | None = None
    is_done: bool = False  # nothing more to publish, or given up
    is_clean: bool = False  # leftovers of killed mirrors were looked for
    restarts: int = 0  # of wandb-core, on behalf of this run
    doing: str = ""  # the call of wandb that is under way


class Mirror:
    """Publishes some runs of one sweep; runs are opened when they have something to say and closed when they are over."""

    def __init__(
        self, sweep: SweepFolder, plan: Plan, run_ids: Sequence[str], mode: Mode, stop: Stop, scratch: Path, why: str | None = None
    ) -> None:
        self.plan, self.mode, self.stop, self.scratch = plan, mode, stop, scratch
        self.why = why  # not online
        owner = claims.this_process({})
        folders = [(run_id, sweep.run_folder(run_id, plan)) for run_id in run_ids]
        self.runs = [
            Published(run_id=run_id, slug=plan.runs[run_id].slug, folder=folder, state=StateFile(folder, owner))
            for run_id, folder in folders
        ]
        self._asked, self._silent_since = time.monotonic(), 0.0

    def follow(self, forever: bool) -> None:
        """Publish what there is; with forever, go on until every run is over or somebody asks to stop. Then close all."""
        self.stop.last_words = self._say_cut_off
        while not self.stop.is_set:
            for published in self.runs:
                self._guard(published, self.publish)
            self._ask_server()
            if not forever or all(published.is_done for published in self.runs) or self.stop.wait(POLL_S):
                break
        if self.stop.is_told and any(published.run for published in self.runs) and mirror_end.has_live_child() is False:
            # Slurm's SIGTERM kills wandb-core at once (seen): do not wait for a call to notice.
            log.info("told to stop: wandb-core is dead, starting another")
            self._forget_core()
        for published in self.runs:
            self._guard(published, self._close_early)

    def publish(self, published: Published) -> None:
        """Log every epoch that a durable checkpoint covers and W&B does not have; finish the W&B run when the run is finished."""
        if published.is_done:
            return
        # A result of fewer epochs than are asked for now is none yet: the run is being carried on.
        result = TrainResult.read(published.folder) if is_finished(published.folder) else None
        if published.run is None and not self._open(published, result):
            return
        for record in mirror_rows.durable_records(published.folder, is_finished=result is not None):
            if record.epoch > published.epoch:
                with self._calling(published, "log"):
                    published.run.log(mirror_rows.row(record), step=record.epoch, commit=True)
                published.epoch = record.epoch
        with self._calling(published, "status"):
            published.run.status()  # a frozen core takes rows for a long time before `log` blocks: this asks for an answer
        if result is not None:
            self._finish(published, mirror_rows.summary(result), exit_code=0)
        elif not self._silent_since:
            published.state.note(epoch=published.epoch if published.mode == "offline" else published.heard)

    # --- one run ---

    def _open(self, published: Published, result: TrainResult | None) -> bool:
        """Start or continue the W&B run; False when there is nothing to say, or another mirror is saying it."""
        folder, cursor = published.folder, Cursor.read(published.folder)
        refuse_other_run(folder, RunRecord.read(folder), published.run_id)
        if result is not None and cursor.complete in (self.mode, "online") and cursor.epoch >= result.epochs:
            published.is_done = True
            published.state.settle(cursor.complete, cursor.epoch)
            self._clean(published, cursor)
            return False
        rows = mirror_rows.durable_records(folder, is_finished=result is not None)
        known = cursor.epoch if self.mode == "offline" else 0
        if not rows or (result is None and (rows[-1].epoch <= known or cursor.closing == self._closing(folder, rows[-1].epoch))):
            self._clean(published, cursor)
            return False
        published.lock = published.lock or mirror_process.lock(mirror_cursor.lock_path(folder, self.mode))
        if published.lock is None:
            # Not a failure: the mirror of an evicted attempt may still be closing down. The next look tries again.
            log.debug("run=%s another mirror has it", published.slug)
            return False
        if self.mode == "offline" and mirror_cursor.is_to_be_joined(folder, cursor):
            cursor, known = replace(cursor, epoch=0, segments=()), 0
            cursor.write(folder)
        if self.mode == "offline":
            mirror_cursor.drop_segments(folder, but=cursor.segments)
        with self._calling(published, "init"):
            published.run, published.mode = self._init(published), self.mode
        # Steps are epochs and count from 1; starting_step is the first step that the server does not have.
        published.epoch = known if self.mode == "offline" else max(published.run.starting_step - 1, 0)
        published.heard = published.epoch
        published.state.note(
            mode=self.mode, why=self.why, epoch=published.epoch, address=published.run.url if self.mode == "online" else None, is_over=False
        )
        return True

    def _init(self, published: Published) -> Any:
        import wandb

        planned, folder = self.plan.runs[published.run_id], published.folder
        project, tags = self.plan.wandb.project or self.plan.sweep, mirror_rows.tags(self.plan, planned)
        mirror_rows.refuse_keys(folder, (project, self.plan.wandb.entity, published.slug, *tags))
        return wandb.init(
            project=project,
            entity=self.plan.wandb.entity,
            id=Cursor.read(folder).wandb_id or mirror_rows.wandb_id(self.plan, published.run_id, folder),
            name=published.slug[:128],
            group=mirror_rows.group(folder, planned),
            job_type="train",
            tags=tags,
            config=mirror_rows.run_config(folder),
            mode=self.mode,
            # Offline there is nothing to resume from, and wandb says so loudly; the cursor does it.
            resume="allow" if self.mode == "online" else None,
            # Online nothing is worth a file on the cluster's disk: the server has the rows, or the journal has.
            dir=str(self.scratch if self.mode == "online" else folder.path),
            reinit="create_new",
            settings=_settings(self.mode, self.stop.finish_timeout_s),
        )

    def _finish(self, published: Published, summary: dict[str, Any], exit_code: int) -> None:
        """Close the W&B run and, only when that has worked, move the cursor."""
        folder, mode = published.folder, published.mode
        with self._calling(published, "log"):
            published.run.summary.update(summary)
        with self._calling(published, "finish"):
            published.run.finish(exit_code)
        wandb_id, published.run = published.run.id, None
        found = mirror_cursor.segments(folder) if mode == "offline" else []
        for name in found:
            mirror_cursor.strip(folder, name)
        before = Cursor.read(folder)
        complete: Mode | None = ("online" if before.complete == "online" else mode) if exit_code == 0 else None
        closing = None if exit_code == 0 else self._closing(folder, published.epoch, mode)
        Cursor(epoch=published.epoch, segments=tuple(found), complete=complete, wandb_id=wandb_id, closing=closing).write(folder)
        self._clean(published, Cursor.read(folder))
        published.is_done = published.is_done or exit_code == 0
        published.state.note(epoch=published.epoch, is_over=True, why=self.why if mode == "offline" else None)
        log.info("run=%s epochs=%d %s", published.slug, published.epoch, "complete" if exit_code == 0 else "so far")

    def _close_early(self, published: Published) -> None:
        """Hand over what is durable, and tell W&B that the run stops here, for now or because it failed."""
        self.publish(published)
        if published.run is None:
            return
        if mirror_rows.closing_word(published.folder) == "preempting":
            published.run.mark_preempting()
        self._finish(published, mirror_rows.unfinished_summary(published.folder), exit_code=1)

    def _closing(self, folder: RunFolder, epoch: int, mode: Mode | None = None) -> Closing:
        return Closing(mode=mode or self.mode, epoch=epoch, ending=mirror_rows.closing_word(folder))

    def _clean(self, published: Published, cursor: Cursor) -> None:
        """Remove what killed mirrors left, and offline copies of what the server has, unless a mirror is writing them."""
        folder, is_on_server = published.folder, cursor.complete == "online" or published.mode == "online"
        kept = () if is_on_server else cursor.segments
        if not set(mirror_cursor.segments(folder)) - set(kept):
            return
        mine = published.lock if published.mode == "offline" else None
        held = mine or mirror_process.lock(mirror_cursor.lock_path(folder, "offline"))
        if held is not None:
            mirror_cursor.drop_segments(folder, but=kept)
            if held is not mine:
                held.close()

    # --- the server and the core ---

    @contextlib.contextmanager
    def _calling(self, published: Published, what: str) -> Any:
        limits = {"init": INIT_TIMEOUT_S + 15.0, "finish": self.stop.finish_timeout_s + 3.0}
        published.doing = what
        with self.stop.within(limits.get(what, mirror_end.CALL_LIMIT_S), is_patient=what in limits):
            yield
        published.doing = ""

    def _ask_server(self) -> None:
        """Notice that a server went silent: its client would go on taking rows, and trying, without a word."""
        behind = [
            published for published in self.runs if published.run and published.mode == "online" and published.epoch > published.heard
        ]
        if not behind or time.monotonic() - self._asked < ASK_S:
            return
        self._asked = time.monotonic()
        before = [published.epoch for published in behind]
        if mirror_process.answers(mirror_process.server_of(os.environ)):
            self._silent_since = 0.0
            for published, epoch in zip(behind, before, strict=True):
                published.heard = epoch
                published.state.note(epoch=epoch, why=None)
            return
        self._silent_since = self._silent_since or time.time()
        since = time.strftime("%H:%M", time.localtime(self._silent_since))
        for published in behind:
            published.state.note(why=f"the server has not answered since {since}")

    def _guard(self, published: Published, action: Callable[[Published], None]) -> None:
        """Run action, and again offline or with a new wandb-core if that may help; what fails then is one line."""
        while True:
            try:
                return action(published)
            except Exception as error:
                what = _remedy(error, published, self.mode)
                if what == "offline":
                    self.mode, self.why = "offline", f"W&B cannot be used ({mirror_process.one_line(error)}); later {mirror_process.LATER}"
                    log.warning("W&B: offline: %s", self.why)
                    self._forget_core()  # it still holds the run's id
                    self._drop_locks()
                elif what == "new core" and published.restarts < _MOST_RESTARTS:
                    # Slurm's SIGTERM kills wandb-core at once, and `log` raises what is no wandb.Error (seen).
                    published.restarts += 1
                    log.info("run=%s trying with a new wandb-core: %s", published.slug, mirror_process.one_line(error))
                    self._forget_core()
                else:
                    return self._give_up(published, error)

    def _give_up(self, published: Published, error: Exception) -> None:
        is_late = published.doing == "finish" and isinstance(error, TimeoutError)
        published.run, published.is_done = None, True
        why = f"W&B did not take the last rows in time; {mirror_process.LATER}" if is_late else mirror_process.one_line(error)
        log.warning("WARNING run=%s is no longer mirrored: %s", published.slug, why)
        if is_late:
            published.state.note(is_over=True, why=why)
        else:
            published.state.note(mode="off", is_over=True, why=why)

    def _drop_locks(self) -> None:
        for published in self.runs:
            if published.lock is not None:
                published.lock.close()
                published.lock = None

    def _forget_core(self) -> None:
        """Drop the dead core and every W&B run that it held: the next look publishes them again, from the record."""
        import wandb

        for published in self.runs:
            published.run = None
        mirror_end.kill_children()
        # SystemExit: wandb leaves with the code of a core that was killed (seen).
        with contextlib.suppress(Exception, SystemExit), self.stop.within(mirror_end.CALL_LIMIT_S):
            wandb.teardown()

    # --- what status shows ---

    def _say_cut_off(self) -> None:
        for published in self.runs:
            if published.run is not None and not published.is_done:
                published.state.note(
                    is_over=True, why=f"cut off while W&B was busy with {published.doing or 'nothing'}; {mirror_process.LATER}"
                )


def _remedy(error: Exception, published: Published, mode: Mode) -> str:
    """ "offline", "new core", or nothing: then it is a folder or a record that cannot be used, or a W&B that says no."""
    if isinstance(error, ToolkitError | ImportError) or (published.doing == "finish" and isinstance(error, TimeoutError)):
        return "nothing"
    if published.doing == "init" and mode == "online" and mirror_end.has_live_child() is not False:
        return "nothing" if "deleted" in str(error) else "offline"
    if isinstance(error, ConnectionError | TimeoutError):
        return "new core"
    return "nothing" if isinstance(error, OSError) else "new core"


def _settings(mode: Mode, finish_timeout_s: float) -> Any:
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        save_code=False,
        disable_git=True,
        disable_job_creation=True,
        symlink=False,
        ignore_globs=("*",),  # else config.yaml and a summary are uploaded as files
        init_timeout=INIT_TIMEOUT_S,
        finish_timeout=finish_timeout_s,
        finish_timeout_raises=True,
        x_disable_meta=True,  # else SLURM_* with SLURM_JWT and argv are uploaded (seen)
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
        x_skip_transaction_log=mode == "online",  # the journal is the record
    )


# --- the command ---


def main(argv: Sequence[str] | None = None) -> int:
    """Always 0, except 2 for a command line or a folder that makes no sense."""
    arguments = _parse(argv)
    mirror_process.log_to(arguments.say_fd)
    with mirror_process.scratch(arguments.scratch) as scratch:
        stop = Stop(arguments.finish_timeout, scratch)
        stop.install(with_parent=arguments.end_fd is not None, end_fd=arguments.end_fd)
        if arguments.end_fd is not None:
            os.nice(10)  # beside a training that has few cores
        try:
            sweep = SweepFolder(arguments.sweep)
            plan = Plan.read(sweep)
            run_ids = [plan.find(name) for name in arguments.runs.split(",")] if arguments.runs else list(plan.runs)
        except ToolkitError as error:
            print(error, file=sys.stderr)
            return 2
        mode, why = mirror_process.choose_mode(plan.wandb.mode, os.environ)
        log.log(logging.INFO if mode == "online" else logging.WARNING, "W&B: %s: %s", mode, why)
        if mode != "disabled":
            mirror_process.clean_environment(os.environ, scratch)
            _mirror(sweep, plan, run_ids, mode, why if mode == "offline" else None, stop, scratch, forever=arguments.follow)
    return 0


def _mirror(
    sweep: SweepFolder, plan: Plan, run_ids: Sequence[str], mode: Mode, why: str | None, stop: Stop, scratch: Path, *, forever: bool
) -> None:
    try:
        Mirror(sweep, plan, run_ids, mode, stop, scratch, why).follow(forever)
    except Exception as error:
        log.warning("WARNING gave up: %s", mirror_process.one_line(error))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hpc.mirror", description="Publish a sweep's journals to W&B, or write them offline.")
    parser.add_argument("sweep", type=Path, metavar="SWEEP", help="a sweep's folder, e.g. runs/ablation")
    parser.add_argument("--runs", metavar="ID,ID", help="only these runs (ids or slugs)")
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--follow", action="store_true", help="go on until the runs are over, or Ctrl-C")
    when.add_argument("--once", action="store_true", help="publish what there is and end (the default)")
    how = "how long W&B may take for the last rows of a run (default: 300)"
    parser.add_argument("--finish-timeout", type=float, default=300.0, metavar="S", help=how)
    for name, kind in (("--end-fd", int), ("--say-fd", int), ("--scratch", Path)):  # of the supervisor
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    # leave, not exit: wandb's exit hooks wait for its core, and a frozen core never answers (seen).
    mirror_end.leave(main())
