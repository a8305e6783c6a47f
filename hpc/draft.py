"""What a launch would do: the sweep's plan merged with the last one, the state of every run, and the tasks that are missing.

Making a draft writes nothing, so `--dry-run` is a draft that is printed. One invariant: a run that is finished, or that anybody may
still have, is in no task of a draft; finished ones come in when --rerun names them.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from hpc import packing, queues, relaunch
from hpc.local import LocalTask
from hpc.paths import Plan, PlannedFolder, Submissions, SweepFolder, task_name
from hpc.relaunch import Code, Diff, Wish
from hpc.shapes import TaskShape
from hpc.site import Site
from hpc.states import MISSING, Queue, RunState, State, run_states
from hpc.sweep import PlannedRun, SweepSpec
from hpc.sweep_spec import PackRequest
from seresnet import attempts
from seresnet.config import numeric_keys
from seresnet.config_file import show_value
from seresnet.errors import ConfigError
from seresnet.pinning import refuse_other_run
from seresnet.run_folder import RunFolder, RunRecord

#: Nobody sends these again unasked: the same would happen, or somebody did not want them.
LEFT: tuple[State, ...] = ("failed", "cancelled")


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
    batches: tuple[Batch, ...]  # one array each
    queue: Queue
    code: Code
    diff: Diff = field(default_factory=Diff)
    rerun: frozenset[str] = frozenset()  # of what is sent: set aside first
    unsent_packs: tuple[tuple[str, ...], ...] = ()  # tasks that there is no room for now

    @property
    def problem(self) -> str | None:
        """Why earlier submissions could not be asked about."""
        return self.queue.problem

    @cached_property
    def sent_run_ids(self) -> tuple[str, ...]:
        return tuple(run_id for batch in self.batches for pack in batch.packs for run_id in pack)

    @property
    def unsent(self) -> tuple[str, ...]:
        return tuple(run_id for pack in self.unsent_packs for run_id in pack)

    @property
    def left_failed(self) -> tuple[RunState, ...]:
        """Failed and cancelled runs that nobody asked to retry."""
        return self._left(LEFT)

    @property
    def left_missing(self) -> tuple[RunState, ...]:
        """What a plain launch would send and this one, with --retry, does not."""
        return self._left(tuple(state for state in MISSING if state not in LEFT))

    @property
    def is_started(self) -> bool:
        """Whether any run has had an attempt, also those that are no longer asked for."""
        ids = {state.run_id for state in self.states}
        others = (self.sweep.run_folder(run_id, self.plan) for run_id in self.plan.runs if run_id not in ids)
        return any(state.attempts for state in self.states) or any(attempts.newest_generation(folder) for folder in others)

    def _left(self, which: Sequence[State]) -> tuple[RunState, ...]:
        sent = {*self.sent_run_ids, *self.unsent}
        return tuple(state for state in self.states if state.state in which and state.run_id not in sent)


def make_draft(
    spec: SweepSpec,
    runs: Sequence[PlannedRun],
    sweep: SweepFolder,
    site: Site,
    *,
    is_local: bool,
    wish: Wish | None = None,
    source: str | None = None,
) -> Draft:
    """Look at what there is and decide what is missing. Raises ConfigError for a wish that cannot be, or a changed pinned key."""
    wish = wish or Wish()
    old, submissions = Plan.read_or_none(sweep), Submissions.read(sweep)
    plan = merged_plan(old, spec, runs, source=source, drop_removed=wish.drop_removed)
    queue = queues.look(sweep, plan, submissions.submissions) if old else Queue()
    epochs = {run.run_id: run.config.train.epochs for run in runs}
    states = tuple(state for state in run_states(sweep, plan, queue, epochs) if state.run_id in epochs)
    diff = relaunch.compare(old, plan, {run.run_id: run for run in runs}, is_dropping=wish.drop_removed)
    again = relaunch.choose_again(states, wish.rerun, plan, queue)
    chosen = again | _chosen(states, wish, plan, diff)
    to_send = [run for run in runs if run.run_id in chosen]
    _refuse_changed_pins(sweep, plan, [run for run in to_send if run.run_id not in again])
    return Draft(
        spec=spec,
        sweep=sweep,
        site=site,
        is_local=is_local,
        runs={run.run_id: run for run in runs},
        plan=plan,
        states=states,
        submissions=submissions,
        batches=_batches(to_send, spec.pack),
        queue=queue,
        code=relaunch.look_at_code(sweep, submissions, wish.code or ("new" if wish.rerun else None), spec.code_root),
        diff=diff,
        rerun=frozenset(again),
    )


def _chosen(states: Sequence[RunState], wish: Wish, plan: Plan, diff: Diff) -> set[str]:
    if wish.only is None:
        return relaunch.choose(states, wish.retry, plan, diff.revived)
    return {state.run_id for state in states if state.run_id in wish.only and state.state in relaunch.SENDABLE}


def merged_plan(
    old: Plan | None, spec: SweepSpec, runs: Sequence[PlannedRun], *, source: str | None = None, drop_removed: bool = False
) -> Plan:
    """The plan of this sweep file; runs that it no longer asks for stay in it without an arm, because tasks may still hold them."""
    arms: dict[str, list[str]] = {arm.name: [] for arm in spec.arms}
    for run in runs:
        for arm in run.arms:
            arms[arm].append(run.run_id)
    known = dict(old.runs) if old else {}
    asked = {run.run_id: _planned_folder(run, known.get(run.run_id)) for run in runs}
    others = {
        run_id: replace(entry, arms=(), dropped=entry.dropped or drop_removed) for run_id, entry in known.items() if run_id not in asked
    }
    return Plan(
        sweep=spec.name,
        salt=old.salt if old else secrets.token_hex(4),
        arms={name: tuple(run_ids) for name, run_ids in arms.items()},
        runs={**asked, **others},
        tasks=old.tasks if old else {},
        wandb=spec.wandb,
        overrides=spec.overrides,
        source=source or (old.source if old else None),
    )


def with_tasks(draft: Draft, batches: Sequence[tuple[str, Batch]]) -> Plan:
    """The draft's plan with the tasks of new submissions; batches are (submission id, batch)."""
    tasks = {task_name(submission_id, index): pack for submission_id, batch in batches for index, pack in enumerate(batch.packs)}
    return replace(draft.plan, tasks={**draft.plan.tasks, **tasks})


def local_tasks(draft: Draft, batches: Sequence[tuple[str, Batch]]) -> tuple[LocalTask, ...]:
    """The tasks of local submissions with what each occupies; batches are (submission id, batch)."""
    tasks = []
    for submission_id, batch in batches:
        for index, pack in enumerate(batch.packs):
            threads = max(draft.runs[run_id].config.train.threads for run_id in pack)
            shape = batch.shape
            # Here one machine is all there is: the ranks of every node run on it.
            processes = shape.ranks * min(shape.at_a_time, len(pack))
            tasks.append(
                LocalTask(name=task_name(submission_id, index), processes=processes, threads=threads, gpus=shape.gpus * shape.nodes)
            )
    return tuple(tasks)


def numbered(draft: Draft) -> list[tuple[str, Batch]]:
    """The batches with the submission ids that they would get now."""
    first = int(draft.submissions.next_id())
    return [(f"{first + offset:04d}", batch) for offset, batch in enumerate(draft.batches)]


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


def _planned_folder(run: PlannedRun, known: PlannedFolder | None) -> PlannedFolder:
    # A run keeps its folder when its arm is renamed: the folder holds its checkpoints.
    folder = known.folder if known else f"{run.slug}-{run.run_id}"
    return PlannedFolder(slug=run.slug, folder=folder, arms=run.arms)


def _batches(runs: Sequence[PlannedRun], request: PackRequest) -> tuple[Batch, ...]:
    """Runs by what they need of a node, packed."""
    shaped: dict[TaskShape, list[tuple[str, ...]]] = {}
    for pack in packing.plan(runs, frozenset(), request):
        shaped.setdefault(pack.shape, []).append(pack.run_ids)
    return tuple(Batch(shape=shape, packs=tuple(packs)) for shape, packs in shaped.items())


def _refuse_changed_pins(sweep: SweepFolder, plan: Plan, runs: Sequence[PlannedRun]) -> None:
    """A run that has started keeps its numeric keys; say so before anything is sent, not in a task an hour later."""
    faults = []
    for run in runs:
        folder = sweep.run_folder(run.run_id, plan)
        record = known_record(folder)
        if record is not None:
            refuse_other_run(folder, record, run.run_id)
        pinned = (record.pinned or {}) if record else {}
        for dotted, value in numeric_keys(run.config).items():
            if dotted in pinned and pinned[dotted] != value:
                faults.append(
                    f"run {run.slug} ({run.run_id}): {dotted}: it started with {show_value(pinned[dotted])}, now {show_value(value)} is "
                    f"asked for. Say {dotted}={show_value(pinned[dotted])}, or give the sweep another name."
                )
    if faults:
        raise ConfigError("\n".join(faults))
