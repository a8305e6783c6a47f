"""Interrupted at any step of 40 and resumed, a run goes on with the same bits and trains each step once."""

from collections.abc import Generator
from pathlib import Path

import pytest
import ranks as ring
import torch
import traces

from seresnet import journal
from seresnet.assembly import build_engine, open_data
from seresnet.checkpoint_files import Header
from seresnet.checkpoint_writer import decode, encode
from seresnet.config_file import read_run_config
from seresnet.engine import Engine
from seresnet.run_folder import RunFolder
from seresnet.state import state_digest
from seresnet.world import World

STEPS, PER_EPOCH = 40, 8


def config_of_40_steps(folder: Path, digits_dir: Path, ranks: int) -> Path:
    """5 epochs of 8 steps, the last of them half a batch; two micro-batches a step; saves whenever it can."""
    return ring.tiny_config(folder, digits_dir, ranks, global_batch_size=24, micro_batch_size=12, checkpoint_every_s=0.001)


class Relay:
    """Engines that are handed each other's state as bytes, in this process."""

    def __init__(self, config: Path) -> None:
        self.config = read_run_config(config, []).config
        self.world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
        self.arrays = open_data(self.config, self.world)

    def fresh(self, payload: bytes | None = None) -> Engine:
        engine, _ = build_engine(self.config, self.arrays, self.world)
        if payload is not None:
            engine.load(decode(payload))
        return engine

    def payload(self, engine: Engine) -> bytes:
        return encode(engine.state(engine.epoch_sums()), Header(generation=1, step=engine.step))

    def digest(self, engine: Engine) -> str:
        return state_digest(engine.state(engine.epoch_sums()))


@pytest.fixture
def one_thread() -> Generator[None, None, None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_resumed_at_every_step_the_end_is_the_same(digits_dir: Path, tmp_path: Path, one_thread: None, amount, report) -> None:
    relay = Relay(config_of_40_steps(tmp_path, digits_dir, 1))
    engine, payloads, digests = relay.fresh(), [], []
    for _ in range(STEPS):
        payloads.append(relay.payload(engine))
        digests.append(relay.digest(engine))
        engine.train_step()
    end, resumed = relay.digest(engine), range(0, STEPS, STEPS // amount(4, 13, 40))  # 13: every third, so at each place in an epoch
    for step in resumed:
        engine, trained = relay.fresh(payloads[step]), []
        assert (engine.step, relay.digest(engine)) == (step, digests[step]), f"loaded at step {step}: another state"
        while engine.step < STEPS:
            trained.append(engine.step)
            engine.train_step()
        assert trained == list(range(step, STEPS)), f"resumed at step {step}"
        assert relay.digest(engine) == end, f"resumed at step {step}: the end differs"
    report("resume at every step of a 40-step run, in one process", f"{len(resumed)} steps", "every end equal")


def test_a_new_engine_for_every_step_changes_no_bit(digits_dir: Path, tmp_path: Path, one_thread: None) -> None:
    relay = Relay(config_of_40_steps(tmp_path, digits_dir, 1))
    whole, handed = relay.fresh(), relay.fresh()
    for step in range(STEPS):
        whole.train_step()
        handed = relay.fresh(relay.payload(handed))
        handed.train_step()
        assert relay.digest(handed) == relay.digest(whole), f"after step {step}"


def killed_and_resumed(folder: Path, digits_dir: Path, ranks: int, plan: str) -> Generator[None, None, Path]:
    """A run killed as TRACE_DO says and trained to its end."""
    folder.mkdir()
    config, run_dir = config_of_40_steps(folder, digits_dir, ranks), folder / "run"
    how = {"hook": "traces:steps"}
    codes = yield from ring.attend(ring.start(config, run_dir, ranks, environ={"TRACE_ATTEMPT": "1", "TRACE_DO": plan}, **how))
    assert -9 in codes, f"{plan}: nobody was killed, {codes}\n{ring.output(run_dir)[-3000:]}"
    yield from ring.finishing(config, run_dir, ranks, environ={"TRACE_ATTEMPT": "2"}, **how)
    return run_dir


def test_killed_at_a_chosen_step_each_step_is_trained_once(digits_dir: Path, tmp_path: Path, amount, report) -> None:
    plans = ["KILL after 8 0", "KILL before 0 1", "KILL before 21 0", "KILL after 40 1"][: amount(1, 4, 4)]
    whole = tmp_path / "whole"
    whole.mkdir()
    undisturbed = ring.finish(config_of_40_steps(whole, digits_dir, 2), whole / "run", 2)
    legs = [killed_and_resumed(tmp_path / plan.replace(" ", "-"), digits_dir, 2, plan) for plan in plans]
    for plan, run_dir in zip(plans, ring.together(legs, width=2), strict=True):
        check_each_once(run_dir, whole / "run", undisturbed.state_digest, plan)
    report("resume at every step of a 40-step run, killed processes", f"{len(plans)} kills", "digests equal, each step once")


def check_each_once(run_dir: Path, whole: Path, digest: str, plan: str) -> None:
    result = journal_of(run_dir)
    assert result[1] == digest, f"{plan}: the state differs"
    assert result[0] == journal_of(whole)[0], f"{plan}: the journal differs"
    attempts = traces.read(run_dir)
    for attempt in attempts:
        for rank in range(2):
            steps = [line["step"] for line in attempt if line["rank"] == rank]
            assert steps == list(range(steps[0], steps[-1] + 1)) if steps else True, f"{plan}: rank {rank} trained {steps}"
    for rank in range(2):
        steps = [line["step"] for line in traces.surviving(attempts, "step") if line["rank"] == rank]
        assert steps == list(range(STEPS)), f"{plan}: rank {rank} trained {steps}"
    lines = [(line["generation"], line["epoch"]) for line in ring.journal_lines(run_dir)]
    assert len(lines) == len(set(lines)), f"{plan}: an attempt wrote an epoch twice: {lines}"


def journal_of(run_dir: Path) -> tuple[list[tuple[object, ...]], str]:
    folder = RunFolder(path=run_dir)
    result = ring.TrainResult.read(folder)
    assert result is not None
    return [(r.epoch, r.step, r.train_loss, r.val_top1_pct, r.test_loss) for r in journal.read(folder)], result.state_digest
