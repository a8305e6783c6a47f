"""One rank of one run as a process: `python -m seresnet.train`, alone, under torchrun, or started by a supervisor.

Answers signals before anything heavy is imported, finds or claims the run folder, hands over to recipe.train, and turns every
ending into an exit code and a record. What is trained is recipe.py's business.
"""

import argparse
import contextlib
import logging
import os
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from seresnet import attempts, claims, own_code, private_folder, provenance, replay
from seresnet.checkpoint_files import list_checkpoints
from seresnet.config import RunConfig, run_id, slug, split_target, to_dict
from seresnet.config_file import config_from_dict, explain, read_run_config
from seresnet.durable import DISK, write_json_durably
from seresnet.errors import CompileError, ConfigError, OwnedElsewhereError, ToolkitError
from seresnet.exits import ENDING_OF_EXIT, Exit, is_out_of_memory
from seresnet.fork import Fork, fork_record, import_parent, origin_of, plan_again, plan_fork, refuse_other_parent, refuse_other_tensors
from seresnet.pinning import refuse_numeric_change, refuse_other_experiment, with_config
from seresnet.run_folder import RunFolder, RunRecord, is_finished
from seresnet.signals import StopFlag
from seresnet.stages import Stages
from seresnet.train_arguments import parser
from seresnet.watchdog import Watchdog, dump_flight_record, dump_stacks

if TYPE_CHECKING:
    from seresnet.world import World

log = logging.getLogger("seresnet")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one rank; never returns normally once training has begun, because a normal interpreter exit can abort (seen)."""
    stages = Stages()
    args = parser().parse_args(argv)
    rank = int(os.environ.get("RANK", "0"))
    try:
        if args.explain:
            if args.config is None:
                raise ConfigError("--explain needs --config: the YAML file whose value is asked for.")
            print("\n".join(explain(read_run_config(args.config, args.override), key) for key in args.explain))
            return 0
        folder, config = _folder_and_config(args)
        _refuse_program(config)
        _name_code_root(args, config)
        fork = _readable_fork(args, folder, config)
        _refuse_unreadable(folder)
        _start_logging(rank, None if "SERESNET_GENERATION" in os.environ else folder)
    except ToolkitError as error:
        print(error, file=sys.stderr)
        return _refused(args.run_dir, rank, str(error))
    stages.mark("config")
    _Process(folder, config, rank, args, fork, stages).run()


class _Process:
    """The state of this rank's ending: who it is, and what it got to."""

    def __init__(
        self, folder: RunFolder, config: RunConfig, rank: int, args: argparse.Namespace, fork: Fork | None, stages: Stages
    ) -> None:
        self.folder, self.config, self.rank, self.fork, self.stages = folder, config, rank, fork, stages
        self.allow_numeric_change, self.trial_steps, self.profile_steps = args.allow_numeric_change, args.trial, args.profile
        self.supervised = "SERESNET_GENERATION" in os.environ
        self.generation = int(os.environ["SERESNET_GENERATION"]) if self.supervised else None
        self.world: World | None = None
        self.watchdog = Watchdog(rank)

    def run(self) -> NoReturn:
        """Train, and leave with the code that says how it ended."""
        stop = StopFlag()
        stop.install(at_once=lambda why: self.leave(Exit.STOPPED, f"{why} before the first step", part=False), look=self._stopped_peer)
        self.watchdog.start(self._bark)
        try:
            code, reason = self._train(stop)
            if self.rank == 0 and self.generation is not None:
                claims.refuse_if_fenced(self.folder, self.generation)  # what we finished or stopped is no longer ours to speak of
        except BaseException as error:
            code, reason = _classify(error)
            is_doubtful = isinstance(error, CompileError) or (code == 1 and isinstance(error, RuntimeError))
            if is_doubtful and (why := stop.signal_name or self._stopped_peer()):
                # A peer that was told to stop before its first step is gone at once, and a compiler that SLURM told as well has failed;
                # what is durable is where the run goes on.
                code, reason = Exit.STOPPED, f"{why}, and then: {reason}"
        self.leave(code, reason)

    def leave(self, code: int, reason: str, *, part: bool = True) -> NoReturn:
        """Write down how this rank ends, part from the others where that was agreed, and exit without running finalisers."""
        level = logging.INFO if code in (Exit.FINISHED, Exit.STOPPED) else logging.ERROR
        log.log(level, "ending=%s code=%d rank=%d reason=%s", ENDING_OF_EXIT.get(code, "crashed"), code, self.rank, reason)
        self._record(code, reason)
        if part and self.world is not None and code in (Exit.FINISHED, Exit.STOPPED, Exit.DIVERGED):
            self.world.part()
        if code != Exit.WATCHDOG:  # whose disk may be what hangs
            private_folder.remove_own()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _stopped_peer(self) -> str | None:
        """Another rank that was told to stop and has left: before the first step it does so without the others, who may wait for it."""
        if self.generation is None:
            return None
        others = (rank for rank in range(int(os.environ.get("WORLD_SIZE", "1"))) if rank != self.rank)
        with contextlib.suppress(OSError):
            codes = {rank: attempts.read_rank_exit(self.folder, self.generation, rank).get("code") for rank in others}
            return next((f"rank {rank} was told to stop" for rank, code in codes.items() if code == Exit.STOPPED), None)
        return None

    def _bark(self, idle_s: float) -> NoReturn:
        """The watchdog's last act, in its thread: say where everything stands, then end, whatever hangs."""
        if self.generation is not None:
            dump_stacks(self.folder.stacks(self.generation, self.rank))
            dump_flight_record(self.folder.flight_record(self.generation, self.rank))
        self.leave(Exit.WATCHDOG, f"no step for {idle_s:.0f} s on rank {self.rank}; the stacks are in attempts/", part=False)

    def _train(self, stop: StopFlag) -> tuple[int, str]:
        if is_finished(self.folder, self.config.train.epochs):
            if self.profile_steps:
                raise ConfigError(f"--profile: {self.folder.path} is finished, no step is left to trace. Name a new --run-dir.")
            return Exit.FINISHED, "finished before; nothing to do"
        owned = self._own() if self.rank == 0 else None
        self.stages.mark("claim")
        try:
            from seresnet import (  # torch takes seconds: the handlers, the claim and its heart are in place
                assembly,
                divergence,
                recipe,
                trial,
                world,
            )
        except ModuleNotFoundError as error:
            raise ConfigError(f"{error.name} is not installed for {sys.executable}. Use the environment of `make setup`.") from error

        self.stages.mark("imports")
        assembly.make_deterministic(self.config)
        self.world = world.join(self.config.train.device)
        self.stages.mark("meet")
        record, claim = self.world.broadcast_object(owned)
        self.generation = claim.generation
        attempt = recipe.Attempt(
            folder=self.folder,
            record=record,
            config=self.config,
            generation=claim.generation,
            base=claim.base,
            watchdog=self.watchdog,
            stages=self.stages,
            profile_steps=self.profile_steps or 0,
        )
        if self.rank == 0:
            self._introduce(assembly.device_name(self.world))
        try:
            recipe.train(attempt, self.world, stop, trial.trial_of(self.trial_steps) if self.trial_steps else None)
        except recipe.Stopped as stopped:
            return Exit.STOPPED, str(stopped)
        except divergence.Diverged as diverged:
            return Exit.DIVERGED, str(diverged)
        return Exit.FINISHED, replay.with_note("finished", self.folder)

    def _own(self) -> tuple[RunRecord, claims.Claim]:
        """Rank 0: make the folder what the config says, claim it unless the supervisor has, and show that it lives."""
        self.folder.create()
        if self.supervised:
            claim = claims.read_claim(self.folder, int(os.environ["SERESNET_GENERATION"]))
            assert claim is not None, f"{self.folder.path}: the supervisor named a claim that is not there"
        else:
            base = self._import_parent if self.fork else None
            claim = claims.acquire(
                self.folder, claims.this_process(), base=base, finished=lambda run: is_finished(run, self.config.train.epochs)
            )
        self.generation = claim.generation
        claims.Heart(self.folder, claim.generation, lambda: self.leave(Exit.FENCED, "a newer attempt owns this run", part=False)).start()
        return self._record_of_run(), claim

    def _import_parent(self, folder: RunFolder) -> str:
        # Before the claim, which names what it starts from and is never rewritten.
        assert self.fork is not None
        return import_parent(folder, self.fork, self.config)

    def _record_of_run(self) -> RunRecord:
        """run.yaml as this start leaves it: written by the run's owner only, and only after everything is checked."""
        if self.folder.run_yaml.exists():
            old = RunRecord.read(self.folder)
            if not self.allow_numeric_change:
                refuse_numeric_change(self.folder, old, self.config)
            record = with_config(old, self.config)
            if record == old:
                return record
        else:
            record = self._new_record()
        generation = self.generation
        assert generation is not None, "run.yaml is its owner's"
        record.write(self.folder, guard=lambda: claims.refuse_if_fenced(self.folder, generation))
        return record

    def _new_record(self) -> RunRecord:
        name, origin = self.folder.path.name, origin_of(self.folder)
        if origin is None:
            own_slug = slug(name.removesuffix(f"-{run_id(self.config)}"))
            return RunRecord(run_id=run_id(self.config), slug=own_slug, config=to_dict(self.config))
        record = fork_record(origin, slug(name), self.config)
        if not self.allow_numeric_change:
            refuse_numeric_change(self.folder, record, self.config)
        return record

    def _introduce(self, device: str) -> None:
        """The attempt's header in the log, and what it runs on beside the claim, which is never rewritten."""
        assert self.world is not None and self.generation is not None
        facts = {"device": device, "world_size": self.world.size, "code_digest": provenance.code_digest()}
        facts |= {"commit": provenance.commit(), "versions": provenance.versions()}
        write_json_durably(self.folder.environment(self.generation), facts)
        header = "attempt=%d host=%s pid=%d ranks=%d device=%r commit=%s"
        log.info(header, self.generation, socket.gethostname(), os.getpid(), self.world.size, device, facts["commit"])

    def _record(self, code: int, reason: str) -> None:
        """Best effort: a full disk must not turn an ending into another one."""
        if self.generation is None:
            return
        ending = ENDING_OF_EXIT.get(code, "crashed")
        try:
            facts = {"code": int(code), "ending": ending, "reason": reason[:2000], "rank": self.rank}
            write_json_durably(self.folder.rank_exit(self.generation, self.rank), facts)
            if self.rank == 0 and not self.supervised and code != Exit.FENCED:
                claims.write_end(self.folder, self.generation, ending, reason=reason[:2000], code=int(code))
        except OSError as error:
            log.error("cannot record the ending: %s", error)


def _refused(run_dir: Path | None, rank: int, reason: str) -> int:
    """The code for a config or command line that cannot be used; under a supervisor with the whole reason for its end record."""
    if run_dir is None or "SERESNET_GENERATION" not in os.environ:
        return 2
    facts = {"code": int(Exit.USER_ERROR), "ending": ENDING_OF_EXIT[Exit.USER_ERROR], "reason": reason[:2000], "rank": rank}
    with contextlib.suppress(OSError):
        write_json_durably(RunFolder(path=run_dir).rank_exit(int(os.environ["SERESNET_GENERATION"]), rank), facts)
    return int(Exit.USER_ERROR)


def _classify(error: BaseException) -> tuple[int, str]:
    """Exit code and one-line reason of what ended the rank; the traceback goes to the log for what only a developer can mend."""
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, OwnedElsewhereError):
        return Exit.FENCED, str(error)
    if isinstance(error, ToolkitError):
        return Exit.USER_ERROR, str(error)
    if isinstance(error, PermissionError) and error.filename:
        return Exit.USER_ERROR, f"{error.filename}: {error.strerror}. Give this user the right to it, and start again."
    traceback.print_exc()
    if is_out_of_memory(error):
        return Exit.GPU_OUT_OF_MEMORY, reason
    return 1, reason


def _folder_and_config(args: argparse.Namespace) -> tuple[RunFolder, RunConfig]:
    """The folder and the config that the command line names, both checked; writes nothing."""
    if args.config is None:
        if args.run_dir is None:
            raise ConfigError("--config or --run-dir is needed: a YAML file to train, or the folder of a run to go on with.")
        if args.override:
            raise ConfigError(f"override {args.override[0]!r}: a run folder's config is fixed. Give --config as well, or change the sweep.")
        folder = RunFolder(path=args.run_dir)
        if args.fork is not None or not _exists(folder.run_yaml):
            why = "--fork needs it" if args.fork is not None else f"{folder.path} holds no run.yaml, so there is no run to go on with"
            raise ConfigError(f"--config is missing: {why}. Give the YAML file to train as well, or the folder of a run.")
        record = RunRecord.read(folder)
        config = config_from_dict(record.config, str(folder.run_yaml))
        refuse_other_experiment(folder, record, config)
        return folder, config
    config = read_run_config(args.config, args.override).config
    path = args.run_dir or Path("runs") / "single" / f"{_slug(args.config, config)}-{run_id(config)}"
    folder = RunFolder(path=path)
    # With --fork, which parent the folder has is said first: naming this folder as the parent would lead nowhere.
    if args.fork is None and _exists(folder.run_yaml):
        refuse_other_experiment(folder, RunRecord.read(folder), config)
    return folder, config


def _refuse_program(config: RunConfig) -> None:
    if config.program.command is not None:
        raise ConfigError(
            "program.command: this run is a script of its own, which the launcher starts, and not this training. "
            "Use python -m hpc.launch --sweep FILE, or sbatch sbatch/train.sh FILE."
        )


def _name_code_root(args: argparse.Namespace, config: RunConfig) -> None:
    """--code-root, else what the environment says, else the config file's folder if a module that the config names lies there."""
    targets = [split_target(target)[0] for target in (config.model.target, config.data.target, config.train.loss_target) if target]
    if args.code_root is not None:
        own_code.name_root(args.code_root)
    elif own_code.code_root() is None and args.config is not None and own_code.holds(args.config.parent, targets):
        own_code.name_root(args.config.parent)
    elif args.config is None and args.run_dir is not None:
        own_code.name_root_of(args.run_dir)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: OSError) -> ConfigError:
    place = error.filename or path
    return ConfigError(f"{place}: {error.strerror or error}. --run-dir must be a folder that this user may read and write, or a new one.")


def _refuse_unreadable(folder: RunFolder) -> None:
    """Raise ConfigError where a person must mend the rights; what a file system mends by itself (EIO, ESTALE) is tried again."""
    try:
        for place in (folder.checkpoints, folder.set_aside, folder.attempts, folder.metrics):
            DISK.names(place)
    except (PermissionError, NotADirectoryError) as error:
        raise _unusable(folder.path, error) from error
    except OSError:
        return


def _readable_fork(args: argparse.Namespace, folder: RunFolder, config: RunConfig) -> Fork | None:
    """_fork, with what the file system refuses (another user's folder, mostly) as an error for people."""
    try:
        return _fork(args, folder, config)
    except OSError as error:
        raise ConfigError(f"--fork {args.fork}: {error.filename or folder.path}: {error.strerror or error}") from error


def _fork(args: argparse.Namespace, folder: RunFolder, config: RunConfig) -> Fork | None:
    """What --fork asks for, checked; None where it does not, or where the folder has its parent's state already. Writes nothing."""
    if args.fork is None:
        return None
    if args.config is None or args.run_dir is None:
        raise ConfigError("--fork needs --config and --run-dir: what the fork trains, and a new folder for it.")
    if "SERESNET_GENERATION" in os.environ:
        raise ConfigError("--fork: a supervisor has claimed this run already. Begin a fork with python -m seresnet.train.")
    origin = origin_of(folder)
    known = RunRecord.read(folder).parent if folder.run_yaml.exists() else origin.parent if origin else None
    if known is not None:
        refuse_other_parent(folder, args.fork, known)
        if folder.run_yaml.exists():
            refuse_other_experiment(folder, RunRecord.read(folder), config)
        is_lost = origin is None and not list_checkpoints(folder) and not DISK.names(folder.set_aside)
        return plan_again(folder, args.fork, config, known) if is_lost else None
    if folder.run_yaml.exists():
        raise ConfigError(f"{folder.run_yaml}: the folder holds a run that is no fork. Give --run-dir a new folder, or leave --fork away.")
    fork = plan_fork(args.fork, config)
    # Before anything is written; where there is no torch the start says so.
    with contextlib.suppress(ModuleNotFoundError):
        refuse_other_tensors(fork, config)
    if not args.allow_numeric_change:
        refuse_numeric_change(folder, fork_record(fork.origin, slug(folder.path.name), config), config)
    return fork


def _slug(path: Path, config: RunConfig) -> str:
    return slug(f"{path.stem}-s{config.train.seed}")


def _start_logging(rank: int, folder: RunFolder | None) -> None:
    """Lines to standard output; beside that to log.txt where no supervisor redirects us into it."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if folder is not None and rank == 0:
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            handlers.append(logging.FileHandler(folder.log))
        except OSError as error:
            raise _unusable(folder.path, error) from error
    prefix = f"rank={rank} " if rank else ""
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {prefix}%(message)s", datefmt="%Y-%m-%d %H:%M:%S", handlers=handlers)
    if rank:
        logging.getLogger("seresnet").setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
