"""Sweep folders without training: real records, numbers from a formula. For tests of what reads them."""

import hashlib
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

from hpc import slurm
from hpc.paths import Plan, PlannedFolder, Submission, Submissions, SweepFolder, WandbSettings
from seresnet import journal
from seresnet.attempts import Owner
from seresnet.config import DataConfig, ModelConfig, RunConfig, TrainConfig, run_id, slug, to_dict
from seresnet.journal import EpochRecord
from seresnet.run_folder import CheckpointName, RunFolder, RunRecord, TrainResult

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
STEPS_PER_EPOCH = 10
COMMIT = "0123456789abcdef0123456789abcdef01234567"

ARMS = {"baseline": ModelConfig(width=16), "se": ModelConfig(width=16, attention="se")}


def config_of(model: ModelConfig, seed: int, epochs: int, val_images: int = 500) -> RunConfig:
    data = DataConfig(val_images=val_images, train_images=5000, test_images=1000)
    train = TrainConfig(seed=seed, epochs=epochs, global_batch_size=512, device="cpu", amp="off")
    return RunConfig(model=model, data=data, train=train)


class FakeSweep:
    """A sweep folder under root with a plan and a run.yaml for every run, as after a launch; results are added by the test."""

    def __init__(self, root: Path, name: str = "demo", arms: dict[str, ModelConfig] | None = None, seeds: int = 2, epochs: int = 6) -> None:
        self.folder = SweepFolder(root / name)
        self.epochs = epochs
        self.ids: dict[tuple[str, int], str] = {}
        self.configs: dict[str, RunConfig] = {}
        slugs: dict[str, str] = {}
        for arm, model in (arms or ARMS).items():
            for seed in range(seeds):
                config = config_of(model, seed, epochs)
                self.ids[arm, seed] = run_id(config)
                self.configs[run_id(config)] = config
                slugs.setdefault(run_id(config), f"{slug(arm)}-seed{seed}")
        self.plan = self._plan(name, slugs)
        self.folder.path.mkdir(parents=True)
        self.plan.write(self.folder)
        for identity, config in self.configs.items():
            folder = self.run(identity)
            folder.create()
            RunRecord(run_id=identity, slug=slugs[identity], config=to_dict(config)).write(folder)

    def _plan(self, name: str, slugs: dict[str, str]) -> Plan:
        arms: dict[str, list[str]] = {}
        for (arm, _), identity in self.ids.items():
            arms.setdefault(arm, []).append(identity)
        runs = {
            identity: PlannedFolder(slug=text, folder=f"{text}-{identity}", arms=tuple(arm for arm, ids in arms.items() if identity in ids))
            for identity, text in slugs.items()
        }
        tasks = {f"0001/{index}": (identity,) for index, identity in enumerate(runs)}
        wandb = WandbSettings(mode="auto", project=None, entity=None)
        return Plan(sweep=name, salt="0a1b2c3d", arms={arm: tuple(ids) for arm, ids in arms.items()}, runs=runs, tasks=tasks, wandb=wandb)

    def run(self, identity: str) -> RunFolder:
        return self.folder.run_folder(identity, self.plan)

    def of(self, arm: str, seed: int) -> RunFolder:
        return self.run(self.ids[arm, seed])

    def attempt(
        self,
        arm: str,
        seed: int,
        ending: str | None = None,
        reason: str = "",
        generation: int = 1,
        hours: float = 0.0,
        job: str | None = None,
    ) -> None:
        """An attempt that ended so, or that has not ended. hours: how long ago it started; it ended half of that later."""
        folder, now = self.of(arm, seed), time.time()
        facts = {"commit": COMMIT, "code_digest": "abcd1234abcd1234"}
        owner = Owner(host="node1", pid=1, array_job_id=job, started=now - 3600 * hours if hours else 0.0, facts=facts)
        claim = {"schema": 1, "generation": generation, "base": None, "owner": asdict(owner)}
        folder.claim(generation).write_text(json.dumps(claim))
        if ending:
            when = {"time": now - 1800 * hours} if hours else {}
            folder.end(generation).write_text(json.dumps({"ending": ending, "reason": reason, **when}))

    def lasted(self, arm: str, seed: int, hours: float, generation: int = 1) -> None:
        """The attempt began at a fixed time and ended so much later: its hours are exact."""
        folder = self.of(arm, seed)
        claim, end = (json.loads(path.read_text()) for path in (folder.claim(generation), folder.end(generation)))
        claim["owner"]["started"], end["time"] = 1.7e9, 1.7e9 + 3600 * hours
        folder.claim(generation).write_text(json.dumps(claim))
        folder.end(generation).write_text(json.dumps(end))

    def beat(self, arm: str, seed: int, generation: int = 1) -> None:
        """The attempt's owner lives, wherever it is."""
        self.of(arm, seed).beat(generation).write_text("1")

    def train(self, arm: str, seed: int, epochs: range, generation: int = 1, durable: int | None = None) -> None:
        """Journal records of these epochs, and a checkpoint that covers epochs up to durable (default: all)."""
        folder = self.of(arm, seed)
        for epoch in epochs:
            journal.append(folder, record(arm, seed, epoch, self.epochs, generation))
        step = STEPS_PER_EPOCH * (epochs[-1] if durable is None else durable)
        (folder.checkpoints / str(CheckpointName(generation=generation, step=step, digest="0" * 16))).write_bytes(b"")

    def finish(self, arm: str, seed: int, **changes: object) -> TrainResult:
        """Everything that a run leaves when all went well; in place of what it left before."""
        self.attempt(arm, seed, "finished")
        self.train(arm, seed, range(1, self.epochs + 1))
        done = replace(result(arm, seed, self.epochs, self.ids[arm, seed], self.plan), **changes)  # type: ignore[arg-type]
        self.of(arm, seed).result.unlink(missing_ok=True)  # a run's own result is never replaced by another of as many epochs
        done.write(self.of(arm, seed))
        return done

    def finish_all(self) -> "FakeSweep":
        for arm, seed in self.ids:
            self.finish(arm, seed)
        return self


def in_every_state(root: Path) -> tuple[FakeSweep, dict[str, slurm.ListedJob]]:
    """Twelve runs of which every state has one (two failed), and the queue that goes with it: array 7 of submission 0001."""
    sweep = FakeSweep(root, seeds=6, epochs=300)
    runs = list(sweep.ids)
    jobs: dict[str, slurm.ListedJob] = {}

    def listed(place: int, state: str, reason: str = "None", start: float | None = None) -> None:
        name = f"{sweep.plan.sweep}-{sweep.plan.salt}-0001"
        jobs[f"7_{place}"] = slurm.ListedJob(job_id=f"7_{place}", name=name, state=state, reason=reason, start=start)

    sweep.attempt(*runs[0], "finished", hours=4, job="7_0")
    sweep.train(*runs[0], range(1, 301))
    result(*runs[0], 300, sweep.ids[runs[0]], sweep.plan).write(sweep.of(*runs[0]))
    sweep.attempt(*runs[1], "preempted", hours=3, job="7_1")
    sweep.attempt(*runs[1], hours=1, job="7_1", generation=2)
    sweep.beat(*runs[1], generation=2)
    sweep.train(*runs[1], range(1, 142), generation=2)
    listed(1, "RUNNING", start=time.time() - 3600)
    listed(2, "PENDING", "QOSMaxGRESPerUser", start=time.time() + 7200)
    listed(3, "RUNNING")
    sweep.attempt(*runs[4], "timed_out", "over the time limit of the job", hours=6, job="7_4")
    sweep.train(*runs[4], range(1, 200))
    listed(4, "PENDING", "Priority")
    sweep.attempt(*runs[5], "user_error", "data.path: /scratch/cifar/train.tar does not exist.\nPut it there.", hours=1, job="7_5")
    sweep.attempt(*runs[6], "diverged", "loss is not finite at step 1410, twice from the same checkpoint", hours=2, job="7_6")
    sweep.train(*runs[6], range(1, 142))
    sweep.attempt(*runs[7], "cancelled", "SIGTERM, and the job is CANCELLED: by the user or the site", hours=2, job="7_7")
    sweep.attempt(*runs[8], "stopped", "asked to stop", hours=2, job="7_8")
    sweep.train(*runs[8], range(1, 20))
    sweep.attempt(*runs[9], hours=2, job="7_9")
    sweep.attempt(*runs[10], "finished", hours=2, job="7_10")
    sweep.train(*runs[10], range(1, 251))
    result(*runs[10], 250, sweep.ids[runs[10]], sweep.plan).write(sweep.of(*runs[10]))
    entry = Submission(id="0001", created=0, code="0001", mode="slurm", tasks=tuple(sweep.plan.tasks), job_id="7", state="submitted")
    Submissions().with_entry(entry).write(sweep.folder)
    return sweep, jobs


def _wobble(*parts: object) -> float:
    """A number in 0..1 that depends on all parts and on nothing else."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:12], 16) / 16**12


def record(arm: str, seed: int, epoch: int, epochs: int, generation: int = 1) -> EpochRecord:
    progress = 1 - 0.75 * 0.05 ** (epoch / epochs)
    top1 = (
        92 * progress
        + 1.5 * arm.startswith("se")
        + 0.8 * (_wobble(arm, seed) - 0.5)
        + 4 * (_wobble(arm, seed, epoch) - 0.5) * (1.1 - progress)
    )
    return EpochRecord(
        epoch=epoch,
        step=epoch * STEPS_PER_EPOCH,
        generation=generation,
        lr=round(0.1 * (1 - epoch / (epochs + 1)), 4),
        train_loss=round(2.4 - 1.3 * progress + 0.05 * _wobble("train", arm, seed, epoch), 4),
        train_top1_pct=round(70 * progress, 4),
        val_loss=round(2.3 - 1.9 * progress + 0.08 * _wobble("val", arm, seed, epoch), 4),
        val_top1_pct=round(top1 - 1 + _wobble("v", arm, seed, epoch), 4),
        test_loss=round(2.3 - 2.0 * progress + 0.08 * _wobble("test", arm, seed, epoch), 4),
        test_top1_pct=round(top1, 4),
        skipped_steps=0,
        seconds=4.5,
        images_per_s=1200.0,
        time=1.7e9 + 5 * epoch,
    )


def confusion(arm: str, seed: int, top1_pct: float) -> list[list[int]]:
    """100 images a class; the errors lean to the neighbour, and between cat and dog."""
    rows = []
    for true in range(10):
        hits = min(100, max(0, round(top1_pct + 6 * (_wobble(arm, seed, true) - 0.5) - 8 * (true in (3, 5)))))
        row = [0] * 10
        row[true] = hits
        friend = {3: 5, 5: 3}.get(true, (true + 1) % 10)
        row[friend] += (100 - hits) - (100 - hits) // 3
        row[(true + 4) % 10] += (100 - hits) // 3
        rows.append(row)
    return rows


def result(arm: str, seed: int, epochs: int, identity: str, plan: Plan) -> TrainResult:
    history = [record(arm, seed, epoch, epochs) for epoch in range(1, epochs + 1)]
    chosen = max(history, key=lambda entry: entry.val_top1_pct or 0)
    best = max(history, key=lambda entry: entry.test_top1_pct)
    return TrainResult(
        run_id=identity,
        slug=plan.runs[identity].slug,
        epochs=epochs,
        step=epochs * STEPS_PER_EPOCH,
        parameters=299_906 if arm.startswith("se") else 297_242,
        state_digest=f"{_wobble('digest', arm, seed):.12f}"[2:],
        data_digest="feedfacecafe0123",
        data_name="CIFAR-10 (JPEG)",
        train_images=5000,
        val_images=500,
        test_images=1000,
        classes=CLASSES,
        train_loss=history[-1].train_loss,
        last_val_top1_pct=history[-1].val_top1_pct,
        last_test_top1_pct=history[-1].test_top1_pct,
        last_test_loss=history[-1].test_loss,
        val_chosen_epoch=chosen.epoch,
        val_chosen_val_top1_pct=chosen.val_top1_pct,
        val_chosen_test_top1_pct=chosen.test_top1_pct,
        best_on_test_epoch=best.epoch,
        best_on_test_top1_pct=best.test_top1_pct,
        confusion=confusion(arm, seed, history[-1].test_top1_pct),
        seconds=4.5 * epochs,
        attempts=1,
        tier="T1",
        world_size=1,
        device="cpu: AMD EPYC 9R14",
        amp="off",
        code_digest="abcd1234abcd1234",
        commit=COMMIT,
        versions={"python": "3.11.9", "torch": "2.14.1"},
    )
