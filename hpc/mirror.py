"""python -m hpc.mirror SWEEP: publish the journals of a sweep's runs to W&B, from a process of its own. The only importer of wandb.

The journal is the record, W&B a copy of it, one row an epoch. One function (publish) serves first start, resume, offline and repair.
One invariant: nothing that happens here changes a run's outcome; every failure is one warning line, and the exit code is 0.
"""

import argparse
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from hpc import mirror_process
from hpc.mirror_process import Mode, Stop
from hpc.paths import Plan, SweepFolder, set_aside_folders
from seresnet import attempts, journal
from seresnet.config import KeyClass, RunConfig, iter_keys
from seresnet.durable import parse_json, write_json_durably
from seresnet.errors import ToolkitError
from seresnet.exits import after_ending
from seresnet.journal import EpochRecord
from seresnet.pinning import refuse_other_run
from seresnet.run_folder import CheckpointName, RunFolder, RunRecord, TrainResult, is_finished

log = logging.getLogger("hpc.mirror")

POLL_S = 2.0

_MOST_RESTARTS = 2

CURSOR_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """wandb/cursor.json in the run folder: what earlier mirrors have handed over for good."""

    epoch: int = 0  # newest epoch in a finished offline segment or on the server
    segments: tuple[str, ...] = ()  # finished offline folders, not yet uploaded as far as we know
    complete: Mode | None = None  # the mode in which the whole of a finished run was published

    @classmethod
    def read(cls, folder: RunFolder) -> "Cursor":
        """An empty cursor where there is none, or one that cannot be read: then everything is published again."""
        try:
            value = parse_json(_cursor_path(folder).read_text())
            if value.pop("schema") == CURSOR_SCHEMA:
                return cls(epoch=int(value["epoch"]), segments=tuple(value["segments"]), complete=value["complete"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return cls()

    def write(self, folder: RunFolder) -> None:
        write_json_durably(_cursor_path(folder), {"schema": CURSOR_SCHEMA, **asdict(self), "segments": list(self.segments)})


@dataclass
class Published:
    """One run of the sweep, and its W&B run while that is open."""

    run_id: str
    slug: str
    folder: RunFolder
    run: Any = None
    epoch: int = 0  # newest epoch logged
    lock: IO[bytes] | None = None
    is_done: bool = False  # nothing more to publish, or given up
    restarts: int = 0  # of wandb-core, on behalf of this run


def main(argv: Sequence[str] | None = None) -> int:
    """Always 0, except 2 for a command line or a folder that makes no sense."""
    arguments = _parse(argv)
    logging.basicConfig(level=logging.INFO, format="mirror: %(message)s", stream=sys.stdout)
    stop = Stop()
    stop.install(with_parent=arguments.follow)
    try:
        sweep = SweepFolder(arguments.sweep)
        plan = Plan.read(sweep)
        run_ids = [plan.find(name) for name in arguments.runs.split(",")] if arguments.runs else list(plan.runs)
    except ToolkitError as error:
        print(error, file=sys.stderr)
        return 2
    mode, why = mirror_process.choose_mode(plan.wandb.mode, os.environ)
    log.info("mode=%s why=%s", mode, why)
    if mode != "disabled":
        _mirror_in_scratch(sweep, plan, run_ids, mode, stop, follow=arguments.follow)
    return 0


def _mirror_in_scratch(sweep: SweepFolder, plan: Plan, run_ids: Sequence[str], mode: Mode, stop: Stop, follow: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="hpc-mirror-", ignore_cleanup_errors=True) as scratch:
        mirror_process.clean_environment(os.environ, Path(scratch))
        try:
            Mirror(sweep, plan, run_ids, mode).follow(stop, forever=follow)
        except Exception as error:
            _warn("gave up", error)


class Mirror:
    """Publishes some runs of one sweep; runs are opened when they have something to say and closed when they are over."""

    def __init__(self, sweep: SweepFolder, plan: Plan, run_ids: Sequence[str], mode: Mode) -> None:
        self.plan, self.mode = plan, mode
        self.runs = [Published(run_id=run_id, slug=plan.runs[run_id].slug, folder=sweep.run_folder(run_id, plan)) for run_id in run_ids]

    def follow(self, stop: Stop, forever: bool) -> None:
        """Publish what there is; with forever, go on until every run is over or somebody asks to stop. Then close all."""
        while not stop.is_set:
            for published in self.runs:
                self._guard(published, self.publish)
            if not forever or all(published.is_done for published in self.runs) or stop.wait(POLL_S):
                break
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
        for record in durable_records(published.folder, is_finished=result is not None):
            if record.epoch > published.epoch:
                published.run.log(row(record), step=record.epoch, commit=True)
                published.epoch = record.epoch
        if result is not None:
            published.run.summary.update(summary(result))
            self._finish(published, exit_code=0)

    def _open(self, published: Published, result: TrainResult | None) -> bool:
        """Start or continue the W&B run; False when there is nothing to say, or another mirror is saying it."""
        folder, cursor = published.folder, Cursor.read(published.folder)
        refuse_other_run(folder, RunRecord.read(folder), published.run_id)
        if result is not None and cursor.complete in (self.mode, "online") and cursor.epoch >= result.epochs:
            published.is_done = True
            return False
        rows = durable_records(folder, is_finished=result is not None)
        known = cursor.epoch if self.mode == "offline" else 0
        if not rows or (result is None and rows[-1].epoch <= known):
            return False
        published.lock = published.lock or mirror_process.lock(_cursor_path(folder).with_name("mirror.lock"))
        if published.lock is None:
            # Not a failure: the mirror of an evicted attempt may still be closing down. The next look tries again.
            log.debug("run=%s another mirror has it", published.slug)
            return False
        _drop_unfinished_segments(folder, cursor)
        published.run = self._init(published)
        # Steps are epochs and count from 1; starting_step is the first step that the server does not have.
        published.epoch = known if self.mode == "offline" else max(published.run.starting_step - 1, 0)
        return True

    def _init(self, published: Published) -> Any:
        import wandb

        arms = self.plan.runs[published.run_id].arms
        return wandb.init(
            project=self.plan.wandb.project or self.plan.sweep,
            entity=self.plan.wandb.entity,
            id=_wandb_id(published, self.plan),
            name=published.slug,
            group=arms[0] if arms else None,
            tags=[self.plan.sweep, *arms[1:]],
            config=run_config(published.folder),
            mode=self.mode,
            # Offline there is nothing to resume from, and wandb says so loudly; the cursor does it.
            resume="allow" if self.mode == "online" else None,
            dir=str(published.folder.path),
            reinit="create_new",
            settings=_settings(),
        )

    def _finish(self, published: Published, exit_code: int) -> None:
        """Close the W&B run and, only when that has worked, move the cursor."""
        published.run.finish(exit_code)
        published.run = None
        if self.mode == "online":
            _drop_unfinished_segments(published.folder, Cursor())  # the server has these rows now
        segments = _segments(published.folder)
        for name in segments:
            _strip(_wandb_folder(published.folder) / name)
        complete = self.mode if exit_code == 0 else None
        Cursor(epoch=published.epoch, segments=tuple(segments), complete=complete).write(published.folder)
        published.is_done = published.is_done or exit_code == 0
        log.info("run=%s epochs=%d %s", published.slug, published.epoch, "complete" if exit_code == 0 else "so far")

    def _close_early(self, published: Published) -> None:
        """Hand over what is durable, and tell W&B that the run stops here, for now or because it failed."""
        self.publish(published)
        if published.run is None:
            return
        generation = attempts.newest_generation(published.folder)
        end = attempts.read_end(published.folder, generation) if generation else None
        # finished: of an earlier number of epochs, or it would have been closed as complete.
        if end is None or after_ending(end.ending) in ("interrupted", "finished"):
            published.run.mark_preempting()
        self._finish(published, exit_code=1)

    def _guard(self, published: Published, action: Callable[[Published], None]) -> None:
        """Run action, and again with a new wandb-core if that may help; what fails then ends this run's mirroring with one line."""
        while True:
            try:
                return action(published)
            except Exception as error:
                if not _may_be_the_core(error) or published.restarts == _MOST_RESTARTS:
                    published.run, published.is_done = None, True
                    return _warn(f"run={published.slug} is no longer mirrored", error)
                # Slurm's SIGTERM kills wandb-core at once, and `log` raises what is no wandb.Error (seen).
                published.restarts += 1
                log.info("run=%s trying with a new wandb-core: %s", published.slug, type(error).__name__)
                self._forget_core()

    def _forget_core(self) -> None:
        """Drop the dead core and every W&B run that it held: the next look publishes them again, from the record."""
        import wandb

        for published in self.runs:
            published.run = None
        try:
            wandb.teardown()
        except Exception as error:
            log.debug("teardown: %s", error)


def _may_be_the_core(error: Exception) -> bool:
    """Whether another wandb-core may help: not against a folder or a record that cannot be used, or a missing package."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return not isinstance(error, OSError | ToolkitError | ImportError)


def durable_records(folder: RunFolder, is_finished: bool) -> list[EpochRecord]:
    """The merged records that no resume can take back: up to the newest checkpoint, or all once there is a result."""
    records = journal.read(folder)
    if is_finished:
        return records
    names = [CheckpointName.parse(path.name) for path in folder.checkpoints.glob("*.safetensors")]
    newest = max((name for name in names if name), default=None)
    return [record for record in records if newest and record.step <= newest.step]


def row(record: EpochRecord) -> dict[str, float]:
    """What W&B gets for an epoch; values that were not measured are left out."""
    values = {
        "train/loss": record.train_loss,
        "train/top1_pct": record.train_top1_pct,
        "val/loss": record.val_loss,
        "val/top1_pct": record.val_top1_pct,
        "test/loss": record.test_loss,
        "test/top1_pct": record.test_top1_pct,
        "lr": record.lr,
        "step": record.step,
        "generation": record.generation,
        "skipped_steps": record.skipped_steps,
        "epoch_seconds": record.seconds,
        "images_per_s": record.images_per_s,
        "tflops": record.tflops,
        "matmul_share_pct": record.matmul_share_pct,
    }
    return {name: value for name, value in values.items() if value is not None}


def summary(result: TrainResult) -> dict[str, Any]:
    """The figures of the table, under the names of the table."""
    keys = ("last_test_top1_pct", "last_val_top1_pct", "val_chosen_test_top1_pct", "val_chosen_epoch", "best_on_test_top1_pct")
    more = ("best_on_test_epoch", "parameters", "attempts", "tier", "state_digest", "seconds")
    return {"ending": "finished"} | {key: value for key in (*keys, *more) if (value := getattr(result, key)) is not None}


def run_config(folder: RunFolder) -> dict[str, Any]:
    """The resolved identity keys, and what the newest attempt says about its code and machine."""
    record = RunRecord.read(folder)
    config: dict[str, Any] = {}
    for dotted, rule, _, _ in iter_keys(RunConfig()):
        section, name = dotted.split(".")
        if rule.key_class is KeyClass.IDENTITY and name in record.config.get(section, {}):
            config.setdefault(section, {})[name] = record.config[section][name]
    config["epochs"], config["run_id"] = record.config["train"]["epochs"], record.run_id
    claim = attempts.newest_claim(folder)
    facts = claim.owner.facts if claim and claim.owner else {}
    return config | {key: facts[key] for key in ("commit", "code_digest", "versions", "device") if key in facts}


def _wandb_id(published: Published, plan: Plan) -> str:
    """The server never takes a step twice, so a run that was set aside and trained again needs another id."""
    again = len(set_aside_folders(published.folder))
    return f"{published.run_id}-{plan.salt}{f'-{again + 1}' if again else ''}"


def _settings() -> Any:
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        save_code=False,
        disable_git=True,
        disable_job_creation=True,
        symlink=False,
        init_timeout=30,  # a busy node; the training does not wait for it
        finish_timeout=30,
        finish_timeout_raises=True,
        x_disable_meta=True,  # else SLURM_* with SLURM_JWT and argv are uploaded (seen)
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )


def _wandb_folder(folder: RunFolder) -> Path:
    return folder.path / "wandb"


def _cursor_path(folder: RunFolder) -> Path:
    return _wandb_folder(folder) / "cursor.json"


def _segments(folder: RunFolder) -> list[str]:
    """Offline segments, oldest first: their names carry the time."""
    return sorted(path.name for path in _wandb_folder(folder).glob("offline-run-*"))


def _drop_unfinished_segments(folder: RunFolder, cursor: Cursor) -> None:
    """Remove what killed mirrors left: its rows are in the journal, may be torn, and would be doubled by those that follow.

    A 7-byte file among them would stop `wandb sync` for the whole batch (seen).
    """
    for name in _segments(folder):
        if name not in cursor.segments:
            shutil.rmtree(_wandb_folder(folder) / name, ignore_errors=True)


def _strip(segment: Path) -> None:
    """Keep the rows, drop wandb's logs and empty folders: inodes are counted on clusters."""
    for name in ("logs", "tmp", "files"):
        shutil.rmtree(segment / name, ignore_errors=True)


def _warn(what: str, error: BaseException) -> None:
    log.warning("WARNING %s: %s: %s", what, type(error).__name__, " ".join(str(error).split())[:300])


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hpc.mirror", description="Publish a sweep's journals to W&B, or write them offline.")
    parser.add_argument("sweep", type=Path, metavar="SWEEP", help="a sweep's folder, e.g. runs/ablation")
    parser.add_argument("--runs", metavar="ID,ID", help="only these runs (ids or slugs)")
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--follow", action="store_true", help="go on until the runs are over, SIGTERM, or the parent's death")
    when.add_argument("--once", action="store_true", help="publish what there is and end (the default)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    # leave, not exit: wandb's exit hooks wait for its core, and a frozen core never answers (seen).
    mirror_process.leave(main())
