"""Real training on the real Slurm, disturbed at random until nobody would expect it to come out right; then compared bit by bit.

`pytest tests/slurm -k chaos --seed N`: 4 runs, 8 disturbances. `--nightly`: 8 runs in 4 packs, one over two nodes and one side by side,
20 disturbances. Any N works: it draws kinds, victims and moments. What was done, and what it cost in steps, is printed.
"""

import json
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cluster import Cluster, ClusterError
from disturb import Disturber, durable_step, processes

from seresnet import journal
from seresnet.run_folder import RunFolder, TrainResult

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(5400)]

REPO = Path(__file__).resolve().parents[2]
KINDS = ("evicted", "evicted", "requeued_by_hand", "rank_killed", "rank_killed", "out_of_time", "node_lost", "node_cut_off")
#: After a disturbance the next one comes this much later, at most: some hit a run that is still starting.
PAUSE_S = 12.0
#: So long with no job in the queue and no process of one: nothing can change any more. A requeue takes a moment.
QUIET_S = 10.0

_SWEEP = """\
name: {name}
base:
  model: {{width: 8, blocks: [1, 1, 1], attention: se}}
  data: {{name: digits, train_images: 512, val_images: 100, test_images: 200}}
  augment: {{crop_padding: 2, flip: false, autoaugment: none, mix_prob: 0.5}}
  optim: {{lr: 0.05, warmup_epochs: 1}}
  train: {{epochs: {epochs}, global_batch_size: 32, micro_batch_size: 16, checkpoint_every_s: 1}}
  train.device: cpu
  train.amp: off
  train.channels_last: false
{arms}
pack: {pack}
"""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Sweeps by name with their arms and packing, and how much happens to them."""

    sweeps: dict[str, tuple[str, str]]
    runs: int
    disturbances: int
    epochs: int


CI = Scenario(
    sweeps={
        "plain": ("arms: {one: {}, ranks: {train.ranks: 2, seeds: [7]}}\nseeds: 3", "{runs_per_task: 1}"),
    },
    runs=4,
    disturbances=8,
    epochs=60,
)
NIGHTLY = Scenario(
    sweeps={
        "packs": (
            "arms: {one: {}, wide: {train.ranks: 2, train.nodes: 2, model.reduction: 4, seeds: 2}}\nseeds: 4",
            "{mode: sequential, runs_per_task: 2}",
        ),
        "beside": ("arms: {beside: {model.reduction: 8}}\nseeds: 2", "{mode: concurrent, per_gpu: 2, runs_per_task: 2}"),
    },
    runs=8,
    disturbances=20,
    epochs=80,
)


@dataclass
class Event:
    """One disturbance, and what was known then of the runs that it may have hit."""

    seconds: float
    kind: str
    task: str
    detail: str
    steps: dict[str, int] = field(default_factory=dict)  # run -> newest durable step


class Chaos:
    """The sweeps of a scenario, launched by the ordinary user through the command line."""

    def __init__(self, cluster: Cluster, folder: Path, scenario: Scenario) -> None:
        self.cluster, self.folder, self.scenario = cluster, folder, scenario
        for name in ("hpc", "seresnet", "configs"):
            shutil.copytree(REPO / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name, (arms, pack) in scenario.sweeps.items():
            (folder / f"{name}.yaml").write_text(_SWEEP.format(name=name, arms=arms, pack=pack, epochs=scenario.epochs))
        cluster.give_to_user(folder)

    def launch(self, runs_dir: str, *more: str) -> None:
        for name in self.scenario.sweeps:
            command = [sys.executable, "-m", "hpc.launch", "--sweep", f"{name}.yaml", "--runs-dir", runs_dir, "wandb.mode=disabled"]
            command += [f"data.dir={self.folder / 'data'}", *more]
            done = self.cluster.run_as_user(command, cwd=self.folder, check=False, timeout_s=1800)
            assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"

    def launch_on_slurm(self) -> None:
        site = ["site.extends=slurm", "site.partition=low", "site.gpu_request=none", "site.cpus_per_rank=1", "site.walltime_min=60"]
        self.launch("disturbed", *site, "site.signal_delay_s=20")

    def runs(self, runs_dir: str) -> dict[str, RunFolder]:
        found = (self.folder / runs_dir).glob("*/*/run.yaml")
        return {path.parent.name: RunFolder(path=path.parent) for path in sorted(found) if path.parent.parent.name != "trials"}

    def unfinished(self) -> list[str]:
        return [name for name, run in self.runs("disturbed").items() if not run.result.exists()]

    def training(self) -> list[str]:
        """Array tasks that Slurm runs now, in a fixed order."""
        lines = self.cluster.command("squeue", "--noheader", "--array", "--partition=low", "--states=RUNNING", "--format=%i").split()
        return sorted(lines)

    def may_change(self) -> bool:
        """Whether Slurm has a job of ours, or one that it has forgotten lives on."""
        has_jobs = bool(self.cluster.command("squeue", "--noheader", "--partition=low", "--format=%i").strip())
        return has_jobs or any(True for _ in processes(self.cluster))

    def say(self) -> str:
        logs = [*self.folder.glob("disturbed/*/logs/*.out"), *self.folder.glob("disturbed/*/*/log.txt")]
        queue = self.cluster.command("squeue", "--array", check=False)
        return queue + "\n".join(f"== {path}\n{path.read_text()[-2500:]}" for path in logs)


def wait_for(look: Callable[[], object], what: str, chaos: Chaos, limit_s: float) -> None:
    changed = time.monotonic()
    deadline = changed + limit_s
    while not look():
        now = time.monotonic()
        changed = now if chaos.may_change() else changed
        assert now - changed < QUIET_S, f"{what}: nothing is queued or runs, unfinished: {chaos.unfinished()}\n{chaos.say()}"
        assert now < deadline, f"{what}: not within {limit_s:.0f} s\n{chaos.say()}"
        time.sleep(0.3)


def disturb(chaos: Chaos, disturber: Disturber, draw: random.Random) -> list[Event]:
    """Do the scenario's number of disturbances, each to a task that runs at that moment."""
    events: list[Event] = []
    started = time.monotonic()
    bag: list[str] = []
    while len(events) < chaos.scenario.disturbances:
        time.sleep(draw.uniform(0, PAUSE_S))
        bag = bag or draw.sample(KINDS, len(KINDS))  # every kind comes before one comes twice as often as it should
        wait_for(lambda: chaos.training() or not chaos.unfinished(), "something trains", chaos, 180)
        assert chaos.unfinished(), f"all runs finished after {len(events)} disturbances; make them longer\n{table(events, chaos)}"
        kind = next(kind for kind in bag if not (disturber.has_lost_a_node and kind.startswith("node")))
        task = draw.choice(chaos.training() or ["none"])
        try:
            detail = getattr(disturber, kind)(task)
        except (ClusterError, KeyError, ValueError) as error:
            print(f"not done: {kind} to {task}: {str(error)[:120]}")  # it ended at this very moment
            continue
        if detail:
            bag.remove(kind)
            steps = {name: durable_step(run.path) for name, run in chaos.runs("disturbed").items()}
            events.append(Event(seconds=time.monotonic() - started, kind=kind, task=task, detail=detail, steps=steps))
            print(f"{events[-1].seconds:6.1f} s  {kind:<17} task {task:<7} {detail}", flush=True)
    return events


def lost_steps(run: RunFolder) -> tuple[int, int]:
    """(attempts, steps that had to be done again at most): from each attempt's last known step to where the next one began."""
    starts = {int(path.stem): json.loads(path.read_text())["base"] for path in run.attempts.glob("*.json") if path.stem.isdigit()}
    seconds = [record.seconds for record in journal.read(run)]
    steps_per_epoch = max((record.step for record in journal.read(run)), default=0) / max(1, len(seconds))
    pace = steps_per_epoch / statistics.median(seconds) if seconds else 0.0
    # At most a save's interval of one second, and its jitter, before the kill.
    return len(starts), round(pace * 1.5) * (len(starts) - 1)


def table(events: Sequence[Event], chaos: Chaos) -> str:
    lines = [f"{'s':>6}  {'disturbance':<17} {'task':<7} what"]
    lines += [f"{event.seconds:6.1f}  {event.kind:<17} {event.task:<7} {event.detail}" for event in events]
    for name, run in chaos.runs("disturbed").items():
        attempts, lost = lost_steps(run)
        endings = [json.loads(path.read_text())["ending"] for path in sorted(run.attempts.glob("*.end.json"))]
        lines.append(f"{name}: {attempts} attempts ({', '.join(endings)}), at most {lost} steps done again")
    return "\n".join(lines)


def test_chaos_ends_with_the_bits_of_a_quiet_sweep(cluster: Cluster, user_path: Path, request: pytest.FixtureRequest) -> None:
    seed = int(request.config.getoption("--seed", default=None) or 0)
    scenario = NIGHTLY if request.config.getoption("--nightly", default=False) else CI
    chaos, draw = Chaos(cluster, user_path, scenario), random.Random(seed)
    chaos.launch("quiet", "--local")
    quiet = {name: TrainResult.read(run) for name, run in chaos.runs("quiet").items()}
    assert len(quiet) == scenario.runs and all(quiet.values()), quiet

    chaos.launch_on_slurm()
    wait_for(lambda: any(durable_step(run.path) for run in chaos.runs("disturbed").values()), "a first checkpoint", chaos, 120)
    disturber = Disturber(cluster, draw.randrange)
    print(f"\nchaos --seed {seed}: {scenario.runs} runs, {scenario.disturbances} disturbances")
    try:
        events = disturb(chaos, disturber, draw)
        wait_for(lambda: not chaos.unfinished(), "every run finishes by itself", chaos, 900)
        wait_for(lambda: not chaos.training(), "the last end files are written", chaos, 60)
    finally:
        disturber.clean_up()
    print(table(events, chaos))
    for name, run in chaos.runs("disturbed").items():
        found, twin = TrainResult.read(run), quiet[name]
        assert found is not None and twin is not None, f"{name} has no result\n{chaos.say()}"
        assert found.state_digest == twin.state_digest, f"{name}: other bits than the undisturbed run\n{table(events, chaos)}"
        assert found.confusion == twin.confusion
        epochs = [record.epoch for record in journal.read(run)]
        assert epochs == list(range(1, scenario.epochs + 1)), f"{name}: epochs missing or doubled: {epochs}"
    print(f"{scenario.runs} of {scenario.runs} state_digests equal their undisturbed twins'")


def test_waiting_ends_early_where_nothing_can_change_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead(Chaos):
        def __init__(self) -> None:
            pass

        def may_change(self) -> bool:
            return False

        def unfinished(self) -> list[str]:
            return ["one-s0"]

        def say(self) -> str:
            return "its logs"

    monkeypatch.setattr(sys.modules[__name__], "QUIET_S", 0.1)
    with pytest.raises(AssertionError, match=r"nothing is queued or runs, unfinished: \['one-s0'\]\s+its logs"):
        wait_for(lambda: False, "every run finishes by itself", Dead(), 900)
