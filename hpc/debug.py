"""`--debug RUN`: train one run in this very process, where breakpoint() and pdb have the terminal and Ctrl-C is Python's own.

No supervisor, no job, no snapshot: what runs is the working copy. torch is imported only here. One invariant: the run itself is not
touched; everything is written into a scratch folder below the sweep's trials/, new each time.
"""

import logging
import shlex
import shutil
import socket
import sys
from bdb import BdbQuit
from pathlib import Path
from typing import TYPE_CHECKING

from hpc import own_program
from hpc.login_data import with_absolute_data
from hpc.paths import SweepFolder, sweep_in
from hpc.site import read_site
from hpc.sweep import PlannedRun, expand, read_sweep
from seresnet import checkpoint_files, claims, own_code
from seresnet.config import to_dict
from seresnet.errors import ConfigError
from seresnet.run_folder import RunFolder, RunRecord, is_finished
from seresnet.signals import StopFlag

if TYPE_CHECKING:
    from hpc.launcher import Request

log = logging.getLogger("seresnet")


def debug_run(request: "Request", name: str) -> int:
    """Train the run that `name` means, by id, the beginning of it, slug or arm. Returns 0, or 130 after Ctrl-C or pdb's quit.

    It goes on from a copy of the run's newest checkpoint, if it is unfinished and has one. Raises ToolkitError; what the code under
    examination raises passes through, with its traceback.
    """
    spec = read_sweep(request.sweep_file, request.overrides)
    site = read_site(spec.site.asked, where=spec.site.where, origins=spec.site.origins)
    sweep = sweep_in(request.runs_dir or site.folder("runs_dir") or Path("runs"), spec.name)
    run = with_absolute_data(find(expand(spec), name), site)
    own_program.refuse_programs([run.config], "--debug")
    folder = RunFolder(path=sweep.trials / f"debug-{run.slug}-{run.run_id}")
    base = _prepare(folder, run, _own_folder(sweep, run))
    refuse_ranks(run, folder)
    print(_about(run, folder, base), flush=True)
    try:
        if spec.code_root is not None:
            own_code.name_root(spec.code_root)
        _train(folder, run)
    except (KeyboardInterrupt, BdbQuit):
        print(f"\nstopped; what it wrote lies in {folder.path}", file=sys.stderr)
        return 130
    return 0


def find(runs: tuple[PlannedRun, ...], name: str) -> PlannedRun:
    """The run that a user means; an arm's name means its first run. Raises ConfigError listing what there is."""
    found = [run for run in runs if name in (run.run_id, run.slug, f"{run.slug}-{run.run_id}")]
    found = found or [run for run in runs if len(name) >= 4 and run.run_id.startswith(name)]
    found = found or [run for run in runs if name in run.arms][:1]
    if len(found) == 1:
        return found[0]
    known = ", ".join(run.slug for run in runs[:20])
    problem = "is the beginning of several run ids" if found else "is no run of this sweep"
    raise ConfigError(f"--debug {name}: {name} {problem}. Runs: {known}{', ...' if len(runs) > 20 else ''}.")


def refuse_ranks(run: PlannedRun, folder: RunFolder) -> None:
    """One process can be stopped at a breakpoint, several cannot; raises ConfigError with the command that starts them in the folder."""
    train = run.config.train
    if train.ranks == 1:
        return
    command = ["torchrun", "--nproc-per-node", str(train.ranks), "-m", "seresnet.train", "--run-dir", str(folder.path)]
    raise ConfigError(
        f"--debug {run.slug}: train.ranks is {train.ranks}, and a debugger stops one process. Debug it as one rank: add train.ranks=1"
        f"{' train.nodes=1' if train.nodes > 1 else ''}; or start its ranks without a debugger: {shlex.join(command)}"
    )


def _own_folder(sweep: SweepFolder, run: PlannedRun) -> RunFolder | None:
    """The run's real folder, which is only read; None before the first launch."""
    found = sorted(sweep.path.glob(f"*-{run.run_id}/run.yaml"))
    return RunFolder(path=found[0].parent) if found else None


def _prepare(folder: RunFolder, run: PlannedRun, own: RunFolder | None) -> str | None:
    """A new scratch folder with the run's config; the name of the checkpoint that was copied into it, if one was."""
    if claims.newest_claim(folder) is not None:
        # Somebody may sit in another terminal, in the middle of a debugger: an owner that lives is not swept away.
        claims.write_end(folder, claims.acquire(folder, claims.this_process(), base=lambda folder: None).generation, "stopped")
    shutil.rmtree(folder.path, ignore_errors=True)
    folder.create()
    RunRecord(run_id=run.run_id, slug=run.slug, config=to_dict(run.config)).write(folder)
    if own is None or is_finished(own, run.config.train.epochs):
        return None
    names = checkpoint_files.trusted(own)
    if not names:
        return None
    shutil.copyfile(own.checkpoints / str(names[-1]), folder.checkpoints / str(names[-1]))
    return str(names[-1])


def _about(run: PlannedRun, folder: RunFolder, base: str | None) -> str:
    lines = [f"debug {run.slug} in this process, with the working copy; scratch folder: {folder.path}"]
    if base:
        lines.append(f"goes on from a copy of the run's checkpoint {base}; from the start: add --runs-dir and an empty folder")
    return "\n".join(lines)


def _train(folder: RunFolder, run: PlannedRun) -> None:
    try:
        from seresnet import assembly, recipe, world
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed for {sys.executable}. Use the environment of `make setup`.") from error

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    assembly.make_deterministic(run.config)
    alone = world.join(run.config.train.device, environ={})
    claim = claims.acquire(folder, claims.this_process())
    attempt = recipe.Attempt(
        folder=folder, record=RunRecord.read(folder), config=run.config, generation=claim.generation, base=claim.base
    )  # fmt: skip
    log.info("attempt=%d host=%s device=%r", claim.generation, socket.gethostname(), assembly.device_name(alone))
    ending = "crashed"
    try:
        # A flag that nobody raises: signals are Python's own, so that Ctrl-C is a KeyboardInterrupt and pdb has its prompt.
        recipe.train(attempt, alone, StopFlag())
        ending = "finished"
    except (KeyboardInterrupt, BdbQuit):
        ending = "stopped"
        raise
    finally:
        claims.write_end(folder, claim.generation, ending)
