"""A launch as it was asked for, and what stays the same from its first look to its last.

Reading the command line is hpc.launch's job and deciding hpc.draft's. One invariant: whoever writes into a sweep's folder does so
inside `planning`, alone.
"""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from hpc import draft as drafts
from hpc import locks, relaunch
from hpc.draft import Draft
from hpc.limits import Limits, live_limits
from hpc.login_data import with_absolute_data
from hpc.paths import Plan, SweepFolder, sweep_in
from hpc.relaunch import Wish
from hpc.site import Site, read_site
from hpc.sweep import PlannedRun, SweepSpec, expand, read_sweep
from seresnet.errors import ConfigError, SubmissionError

#: Another launcher holds the lock only while it plans and writes; a snapshot on a slow file system takes seconds.
_LOCK_WAIT_S = 120.0


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
        words += ["--code", "snapshot"] if self.code == "snapshot" else []
        return shlex.join([*words, "--max-parallel", str(self.max_parallel)] if self.max_parallel else words)


@dataclass(frozen=True, kw_only=True)
class Session:
    """What stays the same from the first look to the last."""

    request: Request
    spec: SweepSpec
    runs: tuple[PlannedRun, ...]
    sweep: SweepFolder
    site: Site
    is_local: bool
    console: Console

    def draft(self, only: frozenset[str] | None = None) -> Draft:
        """What there is to send now; only: of these runs alone. Raises ConfigError for what the command line cannot have."""
        request, source = self.request, relaunch.source_of(self.request.sweep_file, self.sweep)
        if not request.renamed:
            relaunch.check_source(Plan.read_or_none(self.sweep), source, self.sweep, self.spec.own_text)
        code: Literal["snapshot", "new"] | None = request.code or ("new" if request.rerun else None)
        rerun = request.rerun
        if only is not None:
            # What is sent later, as room appears, has been set aside by the first sending, and runs the code of it: the working copy
            # may have been edited since.
            code, rerun = "snapshot", ()
        wish = Wish(retry=request.retry, rerun=rerun, code=code, drop_removed=request.drop_removed, only=only)
        return drafts.make_draft(self.spec, self.runs, self.sweep, self.site, is_local=self.is_local, wish=wish, source=source)

    @cached_property
    def limits(self) -> Limits:
        """The cluster's limits, asked once."""
        return live_limits(self.site)

    def say(self, *lines: str) -> None:
        for line in lines:
            self.console.print(Text(line), soft_wrap=True)


def understand(request: Request, console: Console) -> Session:
    """Read the sweep and its site. Raises ConfigError with every fault; writes nothing."""
    spec = read_sweep(request.sweep_file, request.overrides)
    site = read_site(spec.site.asked, where=spec.site.where, origins=spec.site.origins)
    if spec.mail:
        site = replace(site, mail=spec.mail)
    runs_dir = request.runs_dir or site.folder("runs_dir") or Path("runs")
    sweep = sweep_in(runs_dir, spec.name)
    _tell_elsewhere(request, sweep, spec, console)
    return Session(
        request=request,
        spec=spec,
        runs=tuple(with_absolute_data(run, site) for run in expand(spec)),
        sweep=sweep,
        site=site,
        is_local=request.local or site.scheduler == "local",
        console=console,
    )


def _tell_elsewhere(request: Request, sweep: SweepFolder, spec: SweepSpec, console: Console) -> None:
    """A sweep that was moved to another name must not be trained anew in silence: name it, or refuse where --runs-dir meant it."""
    above = sweep.path.parent
    if above.exists() and not above.is_dir():
        raise ConfigError(f"{above}: is a file. --runs-dir takes the folder in which sweeps lie. Nothing was sent.")
    if not (found := relaunch.elsewhere(sweep, spec.name, request.sweep_file, spec.own_text)):
        return
    names = " and ".join(map(str, found))
    go_on = f"--runs-dir {shlex.quote(str(found[0]))}"
    if request.runs_dir is not None:
        raise ConfigError(
            f"{sweep.path}: there is none, but this sweep is in {names}. To go on with it say {go_on}; to begin all runs anew, say a "
            "--runs-dir without it. Nothing was sent."
        )
    console.print(Text(f"note: this sweep is also in {names}. This launch begins it anew in {sweep.path}; {go_on} goes on with that"))


@contextmanager
def planning(sweep: SweepFolder, *, is_begun: bool = False) -> Iterator[int]:
    """Be the only launcher that plans in this sweep's folder; yields the lock's file for sbatch to hold as well.

    The folder is made unless the launch has begun: then it is there, or was moved, and must not come back where it was.

    Raises SubmissionError where the folder cannot be written, or is another launcher's for too long.
    """
    try:
        if not is_begun:
            sweep.path.mkdir(parents=True, exist_ok=True)
        with locks.holding_file(sweep.launch_lock, wait_s=_LOCK_WAIT_S) as (is_mine, file):
            if not is_mine:
                raise SubmissionError(
                    f"{sweep.path}: another launcher has been at work here for {_LOCK_WAIT_S:.0f} s. Try again when it is done."
                )
            yield file
    except OSError as error:
        if is_begun and not sweep.path.exists():
            raise SubmissionError(f"{sweep.path}: is gone: moved or removed while it was at work. Launch it where it is now.") from error
        # A full disk names no file.
        raise SubmissionError(f"{error.filename or sweep.path}: {error.strerror or error}. Correct that, or say --runs-dir.") from error
