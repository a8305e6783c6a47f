"""Where files and names that were made to do harm are tried, and what several of the forms need. See test_malicious.py."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc import collect, status
from hpc.paths import Plan, PlannedFolder, Submission, Submissions, SweepFolder
from seresnet.config import RunConfig, to_dict
from seresnet.errors import ToolkitError
from seresnet.run_folder import RunFolder, RunRecord


@dataclass(frozen=True)
class Arena:
    """inside: what the code under attack may write to; beside it lies what it must not touch."""

    inside: Path
    canary: Path

    @property
    def call(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.canary}",)

    def pickle(self) -> bytes:
        return pickle.dumps(Payload(*self.call))

    def refused(self, act: Callable[[], object], *words: str) -> None:
        """act must raise an error that a command prints as text."""
        try:
            found = act()
        except ToolkitError as error:
            assert all(word in str(error) for word in words), f"said {error}"
            assert str(error).replace("\n", "").replace("\t", "").isprintable(), f"a terminal would obey {str(error)!r}"
            return
        raise AssertionError(f"not refused: {found!r}")


class Payload:
    """Unpickling this calls function(*arguments)."""

    def __init__(self, function: Any, arguments: tuple[Any, ...]) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


FORMS: dict[str, Callable[[Arena], None]] = {}


def form(attack: Callable[[Arena], None]) -> Callable[[Arena], None]:
    FORMS[attack.__name__] = attack
    return attack


def make_sweep(arena: Arena, folder: str = "run") -> SweepFolder:
    sweep = SweepFolder(arena.inside / "runs" / "demo")
    run = RunFolder(path=sweep.path / "run")
    run.create()
    RunRecord(run_id="run", slug="run", config=to_dict(RunConfig())).write(run)
    entry = PlannedFolder(slug="run", folder=folder, arms=("a",))
    Plan(sweep="demo", salt="0", arms={"a": ("run",)}, runs={"run": entry}, tasks={"0001/0": ("run",)}).write(sweep)
    entries = (Submission(id="0001", created=0.0, code="0001", mode="local", tasks=("0001/0",), state="done"),)
    Submissions(submissions=entries).write(sweep)
    return sweep


def look_at(sweep: SweepFolder) -> str:
    """What status and collect print, as commands; and a second launcher's look at what is missing."""
    said = ""
    for module, words in ((status, []), (status, ["--json"]), (collect, ["--no-figures"])):
        command = [sys.executable, "-m", module.__name__, str(sweep.path), *words]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120)
        assert "Traceback" not in done.stderr, done.stderr
        said += done.stdout + done.stderr
    return said


@contextmanager
def environment(**told: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(told)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
