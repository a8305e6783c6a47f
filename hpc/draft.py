"""What a launch would do: the sweep's plan merged with the last one, the state of every run, and the tasks that are missing.

Making a draft writes nothing, so `--dry-run` is a draft that is printed. One invariant: a run that is finished, or that anybody may
still have, is in no task of a draft.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from hpc import packing, queues
from hpc.local import LocalTask
from hpc.paths import Plan, PlannedFolder, Submissions, SweepFolder, task_name
from hpc.site import Site
from hpc.shapes import TaskShape
from hpc.states import MISSING, OWNED, Queue, RunState, State, run_states
from hpc.sweep import PlannedRun, SweepSpec
from hpc.sweep_spec import PackRequest
from seresnet import attempts
from seresnet.config import numeric_keys
from seresnet.config_file import show_value
from seresnet.errors import ConfigError
from seresnet.run_folder import RunFolder, RunRecord

#: Words that --retry takes beside the names of runs -> the states that they stand for.
RETRY_WORDS: dict[str, tuple[State, ...]] = {"failed": ("failed",), "lost": ("lost",), "all": (*MISSING, "failed")}


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tasks that one array can hold, because they need the same of a node."""

    shape: TaskShape
    packs: tuple[tuple[str, ...], ...]  # run ids of each task


@dataclass(frozen=True, kw_only=True)
class Draft:
    """Everything a launch needs to know before it writes anything."""

    spec: SweepSpec
    sweep: SweepFolder
    site: Site
    is_local: bool
    runs: dict[str, PlannedRun]
    plan: Plan  # with this sweep file's arms; tasks are those of earlier launches
    states: tuple[RunState, ...]  # of this sweep file's runs, in its order
    submissions: Submissions
    batches: tuple[Batch, ...]
    problem: str | None  # why earlier submissions could not be asked about

    @property
    def sent_run_ids(self) -> tuple[str, ...]:
        return tuple(run_id for batch in self.batches for pack in batch.packs for run_id in pack)

    @property
    def left_failed(self) -> tuple[RunState, ...]:
        """Failed runs that nobody asked to retry."""
        return tuple(state for state in self.states if state.state == "failed" and state.run_id not in self.sent_run_ids)

    @property
    def left_missing(self) -> tuple[RunState, ...]:
        """What a plain launch would send and this one, with --retry, does not."""
        return tuple(state for state in self.states if state.state in MISSING and state.run_id not in self.sent_run_ids)


def make_draft(
    spec: SweepSpec, runs: Sequence[PlannedRun], sweep: SweepFolder, site: Site, *, is_local: bool, retry: Sequence[str]
) -> Draft:
    """Look at what there is and decide what is missing. Raises ConfigError for a --retry that names no run, or a changed pinned key."""
    old, submissions = Plan.read_or_none(sweep), Submissions.read(sweep)
    plan = merged_plan(old, spec, runs)
    queue = queues.look(sweep, plan, submissions.submissions) if old else Queue()
    epochs = {run.run_id: run.config.train.epochs for run in runs}
    states = tuple(state for state in run_states(sweep, plan, queue, epochs) if state.run_id in epochs)
    chosen = choose(states, retry, plan)
    to_send = [run for run in runs if run.run_id in chosen]
    _refuse_changed_pins(sweep, plan, to_send)
    return Draft(
        spec=spec,
        sweep=sweep,
        site=site,
        is_local=is_local,
        runs={run.run_id: run for run in runs},
        plan=plan,
        states=states,
        submissions=submissions,
        batches=_batches(to_send, spec.pack, is_local),
        problem=queue.problem,
    )


def merged_plan(old: Plan | None, spec: SweepSpec, runs: Sequence[PlannedRun]) -> Plan:
    """The plan of this sweep file; runs that it no longer asks for stay in it without an arm, because tasks may still hold them."""
    arms: dict[str, tuple[str, ...]] = {arm.name: () for arm in spec.arms}
    for run in runs:
        for arm in run.arms:
            arms[arm] = (*arms[arm], run.run_id)
    known = dict(old.runs) if old else {}
    asked = {run.run_id: _planned_folder(run, known.get(run.run_id)) for run in runs}
    dropped = {
        run_id: PlannedFolder(slug=entry.slug, folder=entry.folder, arms=()) for run_id, entry in known.items() if run_id not in asked
    }
    return Plan(
        sweep=spec.name,
        salt=old.salt if old else secrets.token_hex(4),
        arms=arms,
        runs={**asked, **dropped},
        tasks=old.tasks if old else {},
        wandb=spec.wandb,
    )


def choose(states: Sequence[RunState], retry: Sequence[str], plan: Plan) -> set[str]:
    """Run ids to send: what is missing, or exactly what --retry names, all of it together; raises ConfigError if a run cannot be sent."""
    named = {plan.find(word) for word in retry if word not in RETRY_WORDS}
    by_id = {state.run_id: state for state in states}
    for run_id in named:
        state = by_id[run_id].state if run_id in by_id else "no longer asked for"
        if state not in (*MISSING, "failed"):
            advice = "Move its result.json away to train it again." if state == "finished" else "It cannot be sent a second time."
            raise ConfigError(f"--retry {plan.runs[run_id].slug}: this run is {state}. {advice}")
    wanted = {state for word in retry for state in RETRY_WORDS.get(word, ())} if retry else set(MISSING)
    return named | {state.run_id for state in states if state.state in wanted}


def with_tasks(draft: Draft, batches: Sequence[tuple[str, Batch]]) -> Plan:
    """The draft's plan with the tasks of new submissions; batches are (submission id, batch)."""
    tasks = {task_name(submission_id, index): pack for submission_id, batch in batches for index, pack in enumerate(batch.packs)}
    plan = draft.plan
    return Plan(sweep=plan.sweep, salt=plan.salt, arms=plan.arms, runs=plan.runs, tasks={**plan.tasks, **tasks}, wandb=plan.wandb)


def local_tasks(draft: Draft, submission_id: str) -> tuple[LocalTask, ...]:
    """The tasks of a local submission with what each occupies."""
    tasks = []
    for index, pack in enumerate(pack for batch in draft.batches for pack in batch.packs):
        configs = [draft.runs[run_id].config.train for run_id in pack]
        ranks = max(config.ranks for config in configs)
        is_cuda = any(config.device == "cuda" for config in configs)
        threads = max(config.threads for config in configs)
        tasks.append(LocalTask(name=task_name(submission_id, index), ranks=ranks, threads=threads, needs_gpus=is_cuda))
    return tuple(tasks)


def known_record(folder: RunFolder) -> RunRecord | None:
    """run.yaml as an earlier launch and the run's starts left it; None if there is none.

    A damaged one counts as none while the run has not started: it holds nothing that a launch does not know. Raises ConfigError after.
    """
    if not folder.run_yaml.exists():
        return None
    try:
        return RunRecord.read(folder)
    except ConfigError:
        if attempts.newest_generation(folder) == 0:
            return None
        raise


def is_owned(draft: Draft) -> bool:
    """Whether anybody has a run of this sweep right now."""
    return any(state.state in OWNED for state in draft.states)


def _planned_folder(run: PlannedRun, known: PlannedFolder | None) -> PlannedFolder:
    # A run keeps its folder when its arm is renamed: the folder holds its checkpoints.
    folder = known.folder if known else f"{run.slug}-{run.run_id}"
    return PlannedFolder(slug=run.slug, folder=folder, arms=run.arms)


def _batches(runs: Sequence[PlannedRun], request: PackRequest, is_local: bool) -> tuple[Batch, ...]:
    """Runs by what they need of a node, packed; in local mode one batch, because there is no array to share a shape."""
    shaped: dict[TaskShape, list[tuple[str, ...]]] = {}
    for pack in packing.plan(runs, frozenset(), request):
        shaped.setdefault(pack.shape, []).append(pack.run_ids)
    batches = tuple(Batch(shape=shape, packs=tuple(packs)) for shape, packs in shaped.items())
    if is_local and len(batches) > 1:
        return (Batch(shape=batches[0].shape, packs=tuple(pack for batch in batches for pack in batch.packs)),)
    return batches


def _refuse_changed_pins(sweep: SweepFolder, plan: Plan, runs: Sequence[PlannedRun]) -> None:
    """A run that has started keeps its numeric keys; say so before anything is sent, not in a task an hour later."""
    faults = []
    for run in runs:
        folder = sweep.run_folder(run.run_id, plan)
        record = known_record(folder)
        pinned = (record.pinned or {}) if record else {}
        for dotted, value in numeric_keys(run.config).items():
            if dotted in pinned and pinned[dotted] != value:
                faults.append(
                    f"run {run.slug} ({run.run_id}): {dotted}: it started with {show_value(pinned[dotted])}, now {show_value(value)} is "
                    f"asked for. Say {dotted}={show_value(pinned[dotted])}, or give the sweep another name."
                )
    if faults:
        raise ConfigError("\n".join(faults))
