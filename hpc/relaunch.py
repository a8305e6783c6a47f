"""What it means to launch a sweep again: what was edited, which runs are meant, and which code they go on with.

Pure but for a look at the code snapshots; hpc.draft puts the answers together and hpc.launch_write acts on them. One invariant:
nothing that has been trained is trained again, dropped or mixed with other code unless the command line says so.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hpc import code_snapshot
from hpc.no_sweep import sweeps_in
from hpc.paths import Plan, Submissions, SweepFolder
from hpc.states import MISSING, OWNED, Queue, RunState, State
from hpc.sweep import PlannedRun
from seresnet.config import to_dict
from seresnet.errors import ConfigError
from seresnet.run_folder import RunRecord

#: Words that --retry takes beside the names of runs and arms -> the states that they stand for.
RETRY_WORDS: dict[str, tuple[State, ...]] = {
    "failed": ("failed",),
    "lost": ("lost",),
    "cancelled": ("cancelled",),
    "all": (*MISSING, "failed", "cancelled"),
}
#: In which a run can be sent if it is asked for by name.
SENDABLE: tuple[State, ...] = RETRY_WORDS["all"]
#: In which a run has a result that --rerun sets aside.
TRAINED: tuple[State, ...] = ("finished", "extend")
_FILES_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the command line asks of a relaunch."""

    retry: tuple[str, ...] = ()
    rerun: tuple[str, ...] = ()
    code: Literal["snapshot", "new"] | None = None
    drop_removed: bool = False
    only: frozenset[str] | None = None  # run ids: no others, whatever else is missing by now


# --- which file ---


def source_of(file: Path, sweep: SweepFolder) -> str:
    """The sweep's file as plan.json names it: relative to the sweep's folder, so that it does not matter where one launches."""
    return os.path.relpath(file.parent.resolve() / file.name, sweep.path.resolve())


def check_source(old: Plan | None, source: str, sweep: SweepFolder, text: str = "") -> None:
    """Raise ConfigError if the folder was made by another file. Plans of earlier versions do not say: any file will do.

    text: of the file. Where the recorded one is not there, because the sweep's folder was moved, one of its name that says the same is
    the same.
    """
    if old is None or old.source is None or old.source == source:
        return
    is_gone = Path(old.source).name == Path(source).name and not (sweep.path / old.source).exists()
    if text and is_gone and _is_kept_copy(sweep.sweep_yaml, text):
        return
    first, second = (os.path.relpath(sweep.path.resolve() / name) for name in (old.source, source))
    raise ConfigError(
        f"{second}: name: {old.sweep!r} is the sweep of {first}, which has {sweep.path}. Give this one another name:, or say --renamed "
        "if it is the same sweep and its file, or its folder, was moved or renamed. Nothing was sent."
    )


def elsewhere(sweep: SweepFolder, name: str, file: Path, text: str) -> list[Path]:
    """Folders beside the one where this sweep would be, which is not there: those that hold it under another name."""
    found = []
    for path in sweeps_in(sweep.path.parent) if not sweep.plan.exists() else []:
        with contextlib.suppress(ConfigError, OSError):  # another user's
            other = SweepFolder(path)
            plan = Plan.read(other)
            if plan.sweep == name and plan.source is not None:
                check_source(plan, source_of(file, other), other, text)
                found.append(path)
    return found


def _is_kept_copy(kept: Path, text: str) -> bool:
    """Whether the sweep's folder keeps just this text, apart from the overrides and the base file below it."""
    try:
        head, rest = kept.read_text(), text.rstrip("\n") + "\n"
    except (OSError, ValueError):
        return False
    return head.startswith(rest) and all(line.startswith("#") for line in head[len(rest) :].splitlines())


# --- what was edited ---


#: Beside a diff in which runs went and others of the same names came.
LONGER_IS_OTHER = (
    "note: these differ from runs no longer asked for by train.epochs alone. With optim.schedule_epochs unset it is also the schedule's "
    "horizon, so another number of epochs is another experiment; a run can be carried on only up to a schedule_epochs set before its start"
)


@dataclass(frozen=True, kw_only=True)
class Diff:
    """An edited sweep against the plan of the launch before."""

    added: tuple[str, ...] = ()  # run ids
    revived: tuple[str, ...] = ()  # those of them that had been dropped
    kept: int = 0
    removed: tuple[str, ...] = ()  # with --drop-removed also those that an earlier edit had removed
    is_dropping: bool = False
    what: str = ""  # is added: "arm eca; seeds 3,4"

    def __str__(self) -> str:
        """Empty where nothing was edited; else "+6 (arm eca; seeds 3,4)  =10  -5 no longer asked"."""
        if not (self.added or self.removed):
            return ""
        added = f"+{len(self.added)} ({self.what})" if self.added else "+0"
        removed = f"-{len(self.removed)} {'dropped' if self.is_dropping else 'no longer asked'}" if self.removed else "-0"
        return f"{added}  ={self.kept}  {removed}"


def is_longer_alone(sweep: SweepFolder, plan: Plan, diff: Diff, runs: Mapping[str, PlannedRun]) -> bool:
    """Whether an added run differs from a removed one of its name by train.epochs alone, which its user took for carrying on."""
    gone = {plan.runs[run_id].slug: run_id for run_id in diff.removed}
    for run_id in diff.added:
        twin = gone.get(plan.runs[run_id].slug)
        if twin is not None:
            try:
                before = RunRecord.read(sweep.run_folder(twin, plan)).config
            except ConfigError:
                return False
            now = to_dict(runs[run_id].config)
            return before | {"train": {**before["train"], "epochs": now["train"]["epochs"]}} == now  # one answers for all
    return False


def compare(old: Plan | None, new: Plan, runs: Mapping[str, PlannedRun], *, is_dropping: bool) -> Diff:
    """How the new plan's runs differ from those that the old one asked for."""
    if old is None:
        return Diff()
    before = {run_id for run_id, entry in old.runs.items() if entry.arms}
    added = tuple(run_id for run_id in runs if run_id not in before)
    gone = [run_id for run_id in new.runs if run_id not in runs]
    removed = tuple(run_id for run_id in gone if run_id in before or (is_dropping and not old.runs[run_id].dropped))
    return Diff(
        added=added,
        revived=tuple(run_id for run_id in added if run_id in old.runs and old.runs[run_id].dropped),
        kept=len(runs) - len(added),
        removed=removed,
        is_dropping=is_dropping,
        what=_what(old, [runs[run_id] for run_id in added]),
    )


def _what(old: Plan, added: Sequence[PlannedRun]) -> str:
    """New arms by name, and new runs of known arms by their seeds."""
    arms = list(dict.fromkeys(arm for run in added for arm in run.arms if arm not in old.arms))
    seeds = sorted({run.config.train.seed for run in added if any(arm in old.arms for arm in run.arms)})
    parts = [f"arm{'s' if len(arms) > 1 else ''} {', '.join(arms)}"] if arms else []
    parts += [f"seed{'s' if len(seeds) > 1 else ''} {','.join(map(str, seeds))}"] if seeds else []
    return "; ".join(parts)


# --- which runs ---


def choose(states: Sequence[RunState], retry: Sequence[str], plan: Plan, revived: Sequence[str] = ()) -> set[str]:
    """Run ids to send: what is missing, or exactly what --retry names, all of it together; raises ConfigError if a run cannot be sent.

    revived: runs that were dropped, and cancelled for it, and are asked for again.
    """
    named = {run_id for word in retry if word not in RETRY_WORDS for run_id in _named(word, states, plan, "--retry", SENDABLE)}
    wanted = {state for word in retry for state in RETRY_WORDS.get(word, ())} if retry else set(MISSING)
    again = {state.run_id for state in states if not retry and state.run_id in revived and state.state in SENDABLE}
    return named | again | {state.run_id for state in states if state.state in wanted}


def choose_again(states: Sequence[RunState], rerun: Sequence[str], plan: Plan, queue: Queue) -> set[str]:
    """Run ids that --rerun names: `all` and an arm mean the finished ones; raises ConfigError if somebody still has one of them."""
    free = tuple({*TRAINED, *SENDABLE})
    chosen = {state.run_id for state in states if "all" in rerun and state.state in TRAINED}
    for word in rerun:
        if word != "all":
            chosen |= set(_named(word, states, plan, "--rerun", TRAINED if word in plan.arms else free))
    faults = []
    for task in queue.tasks:
        # A task that is requeued goes through all its runs again, with the code that it was sent with.
        again = [plan.runs[run_id].slug for run_id in plan.tasks.get(task, ()) if run_id in chosen]
        if again:
            faults.append(f"--rerun {', '.join(again)}: task {task}, which also has other runs, is not over. Wait for it, or cancel it.")
    if faults:
        raise ConfigError("\n".join(faults))
    return chosen


def _named(word: str, states: Sequence[RunState], plan: Plan, option: str, allowed: Sequence[State]) -> list[str]:
    """The runs that a word means and that are in an allowed state. Of an arm these may be some, a run must be one."""
    by_id: dict[str, str] = {state.run_id: state.state for state in states}
    found = _found(word, plan, option)
    usable = [run_id for run_id in found if by_id.get(run_id) in allowed]
    if usable:
        return usable
    counts = Counter(by_id.get(run_id, "no longer asked for") for run_id in found)
    if word in plan.arms:
        raise ConfigError(f"{option} {word}: no run of this arm can be sent: {', '.join(f'{n} {state}' for state, n in counts.items())}.")
    slug, state = plan.runs[found[0]].slug, next(iter(counts))
    advice = {
        "finished": f"Say --rerun {slug} to set its result aside and train it again.",
        "no longer asked for": "Put it back into the sweep's file.",
    }
    raise ConfigError(f"{option} {slug}: this run is {state}. {advice.get(state, 'It cannot be sent a second time.')}")


def _found(word: str, plan: Plan, option: str) -> tuple[str, ...]:
    words = ("all",) if option == "--rerun" else tuple(RETRY_WORDS)
    try:
        return plan.find_all(word)
    except ConfigError as error:
        raise ConfigError(f"{option} {word}: {error} Words: {', '.join(words)}.") from error


# --- which code ---


@dataclass(frozen=True, kw_only=True)
class Code:
    """The code that will be sent, and what has changed since the last time."""

    number: str  # of its snapshot
    is_taken: bool  # whether that snapshot exists
    before: str | None = None  # the newest snapshot that the sweep was launched with
    working: str = ""  # number that the working copy has or would get
    changes: tuple[str, ...] = ()  # files by which the working copy differs from `before`
    is_chosen: bool = False  # by --code or --rerun; without it a launch whose code was edited is refused


def look_at_code(sweep: SweepFolder, submissions: Submissions, asked: Literal["snapshot", "new"] | None, user: Path | None = None) -> Code:
    """Compare the working copy with the newest snapshot that was sent; asked decides which of the two is meant. user: the code_root."""
    working, is_taken = code_snapshot.peek(sweep.codes, user=user)
    sent = (entry.code for entry in reversed(submissions.submissions) if (sweep.code(entry.code) / code_snapshot.MARK).exists())
    before = next(sent, None)
    if before is None or before == working:
        return Code(number=working, is_taken=is_taken, before=before, working=working)
    changes, is_chosen = code_snapshot.changes(sweep.code(before), user=user), asked is not None
    code = Code(number=working, is_taken=is_taken, before=before, working=working, changes=changes, is_chosen=is_chosen)
    return replace(code, number=before, is_taken=True) if asked == "snapshot" else code


def code_refusal(sweep: SweepFolder, code: Code) -> str:
    """What to say when the code was edited and nobody said which one is meant."""
    more = len(code.changes) - _FILES_SHOWN
    files = [*code.changes[:_FILES_SHOWN], *([f"and {more} more"] if more > 0 else [])]
    return "\n".join(
        [
            f"{sweep.code(code.before or '')}: the code was edited since this sweep was launched:",
            *(f"  {line}" for line in files),
            "Say which code the runs go on with. Nothing was sent.",
            f"  --code snapshot       the old one, code/{code.before}",
            f"  --code new            this one, as code/{code.working}; unfinished runs go on from their checkpoints",
            "  --rerun all, or RUN   this one; finished runs are set aside and trained again",
        ]
    )


def is_owned(states: Sequence[RunState]) -> bool:
    """Whether anybody has one of these runs right now."""
    return any(state.state in OWNED for state in states)
