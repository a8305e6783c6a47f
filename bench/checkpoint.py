"""What saving, steering and determinism cost training, and how fast a run stops: ratios, each taken in one run on this machine.

`python bench/checkpoint.py` measures and prints, `--check` fails (exit 1) where a target is missed, `--quick` takes a few samples of
each to try it out. Writes into a scratch folder beside the current directory's files, because /tmp may be memory; `--dir` says where else.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

STALL_AT_MOST = 0.10
STEPS_AT_LEAST = 0.99
DURABLE_STEPS, DURABLE_S = 2, 2.0  # docs/reliability.md: durable within 2 steps + 2 s
CADENCE_S = 60.0
GPU_KILLS = 5


@dataclass(kw_only=True)
class Report:
    """Prints as it goes, and remembers what was missed."""

    missed: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        print(text, flush=True)

    def check(self, text: str, target: str, is_met: bool | None) -> None:
        """is_met: None where the noise is larger than what is asked."""
        verdict = {True: "met", False: "MISSED", None: "UNDECIDED: the noise is above the target"}[is_met]
        self.say(f"{text}   [{target}: {verdict}]")
        if is_met is False:
            self.missed.append(text)


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """How many samples of each."""

    rounds: int = 12
    agreement_s: float = 90.0
    stops: int = 5
    mode_rounds: int = 12


QUICK = Amounts(rounds=3, agreement_s=8.0, stops=1, mode_rounds=2)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print; with --check 1 if a target is missed."""
    args = _parser().parse_args(argv)
    amounts, report = QUICK if args.quick else Amounts(), Report()
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="bench-checkpoint-") as scratch:
        _introduce(report, Path(scratch))
        held_s = _saves(report, amounts, Path(scratch))
        _agreement(report, amounts, held_s)
        _stops(report, amounts, Path(scratch))
        _gpu(report, Path(scratch))
    if report.missed:
        report.say(f"{len(report.missed)} missed")
    return int(args.check and bool(report.missed))


def _introduce(report: Report, scratch: Path) -> None:
    import torch

    from seresnet import provenance

    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    report.say(
        f"{provenance.cpu_model()}, {os.cpu_count()} cores, load average {load}; commit {provenance.commit()}; torch {torch.__version__}"
    )
    report.say(f"network: SE-ResNet of configs/seresnet.yaml, 1 CPU thread, batches of 4; files in {scratch.parent}")


def _saves(report: Report, amounts: Amounts, scratch: Path) -> float:
    """Returns the seconds that one save costs training, held and slowed down."""
    import torch
    import torch.distributed as dist
    from checkpoint_saves import FULL, async_save, interval, make_engine, measure_modes, measure_saves, ours, quiet_stderr, torch_save

    from seresnet.world import World

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{scratch / 'alone'}", rank=0, world_size=1)  # what async_save asks for
    engine = make_engine(FULL, World(rank=0, local_rank=0, size=1, device=torch.device("cpu")), global_batch_size=4, amp="off")
    way, writer = ours(scratch / "ours")
    ways = {
        "background save": way,
        "torch.save + fsync": torch_save(scratch),
        "async_save": async_save(scratch / "dcp"),
        "async_save, memory kept": async_save(scratch / "dcp-cached", cached=True),
        "async_save, process": async_save(scratch / "dcp-process", process=True),
    }
    with quiet_stderr():
        costs, step_s = measure_saves(engine, ways, amounts.rounds)
    writer.close()
    report.say(f"\nsaves, n = {amounts.rounds} each, taking turns; median step without one {step_s * 1e3:.0f} ms")
    for name, cost in costs.items():
        report.say(
            f"  {name:24} held {cost.stall * 1e3:6.1f} ms (to {max(cost.stalls) * 1e3:.1f}; CPU {statistics.median(cost.cpu) * 1e3:.1f}), "
            f"steps beside it slower by {cost.slowed(step_s) * 1e3:6.1f} ms in all, "
            f"on the disk after {statistics.median(cost.written) * 1e3:5.0f} ms"
        )
    own = costs.pop("background save")
    for name, cost in costs.items():
        middle, low, high = interval([a / b for a, b in zip(own.stalls, cost.stalls, strict=True)])
        text = f"  stall against {name}: {middle:.3f} ({low:.3f} to {high:.3f})"
        if name == "torch.save + fsync":
            best = min(own.stalls) / min(cost.stalls)
            is_met = None if low <= STALL_AT_MOST < high else middle <= STALL_AT_MOST
            report.check(f"{text}, best against best {best:.3f}", f"at most {STALL_AT_MOST:.2f}", is_met)
        else:
            report.say(text)
    _modes(report, interval(measure_modes(engine, amounts.mode_rounds)), "CPU", amounts.mode_rounds)
    dist.destroy_process_group()
    return own.stall + max(0.0, own.slowed(step_s))


def _modes(report: Report, found: tuple[float, float, float], where: str, n: int) -> None:
    middle, low, high = (1 / value for value in found)
    report.say(f"\ndeterministic mode, {where}: {middle:.3f} of the steps/s without it ({high:.3f} to {low:.3f}), n = {n}")


def _agreement(report: Report, amounts: Amounts, save_s: float) -> None:
    from checkpoint_ranks import BLOCK, measure_agreement
    from checkpoint_saves import interval

    found = measure_agreement(amounts.agreement_s)
    cadence = 1 - save_s / CADENCE_S
    middle, low, high = (value * cadence for value in interval(found["ratios"]))
    is_met = None if low < STEPS_AT_LEAST <= high else middle >= STEPS_AT_LEAST
    blocks = f"{len(found['ratios'])} pairs of blocks of {BLOCK} steps, with and without"
    share = found["agree_s"] / found["step_s"]
    report.say(f"\nagreement: 2 gloo ranks, steps of {found['step_s'] * 1e3:.0f} ms, {blocks}")
    report.say(f"  in agree() itself rank 0 spends {found['agree_s'] * 1e6:.0f} us a step, {share:.2%} of it")
    report.say(f"  a save every {CADENCE_S:.0f} s leaves {cadence:.5f} of the steps/s (from the save above: held and slowed down)")
    text = f"  steps/s with agreement and that cadence against none: {middle:.4f} ({low:.4f} to {high:.4f})"
    report.check(text, f"at least {STEPS_AT_LEAST:.2f}", is_met)


def _stops(report: Report, amounts: Amounts, scratch: Path) -> None:
    from checkpoint_ranks import measure_stops

    found = measure_stops(scratch, amounts.stops)
    report.say(f"\nSIGTERM to one of two ranks of the full network, CPU, n = {len(found)}, at a random moment of a step:")
    for stop in found:
        steps = f"{stop.durable_s / stop.step_s:.1f} steps of {stop.step_s:.2f} s"
        report.say(f"  durable after {stop.durable_s:.2f} s = {steps}; exit after {stop.exit_s:.2f} s")
    # Of what is beyond the steps that it may take: on a busy machine single ones say more about the others on it.
    over_s = statistics.median(stop.durable_s - DURABLE_STEPS * stop.step_s for stop in found)
    text = f"  median of what it took beyond {DURABLE_STEPS} steps: {over_s:.2f} s"
    report.check(text, f"at most {DURABLE_S:.0f} s", over_s <= DURABLE_S)


def _gpu(report: Report, scratch: Path) -> None:
    """Not quicker with --quick: where there is a GPU this is what it is for."""
    import torch

    if not torch.cuda.is_available():
        report.say("\nGPU: none here; kills and resumes in AMP and the cost of determinism there were not measured")
        return
    from checkpoint_ranks import kills, seconds_a_step
    from checkpoint_saves import interval

    report.say(f"\nGPU: {torch.cuda.get_device_name()}, bf16")
    killed, undisturbed, found = kills(scratch, GPU_KILLS, device="cuda", amp="bf16", global_batch_size=64, epochs=60)
    text = f"  {killed} kills and resumes of the full network: state_digest {found[:16]}, undisturbed {undisturbed[:16]}"
    report.check(text, f"equal after {GPU_KILLS}", killed == GPU_KILLS and found == undisturbed)
    train = {"device": "cuda", "amp": "bf16", "global_batch_size": 1024}
    ratios = [seconds_a_step(30, True, **train) / seconds_a_step(30, False, **train) for _ in range(3)]
    _modes(report, interval(ratios), "GPU, batches of 1,024", len(ratios))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench/checkpoint.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    parser.add_argument("--quick", action="store_true", help="a few samples of each: to try it, not to believe it")
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="where the scratch folder is made: on the disk to measure")
    return parser


if __name__ == "__main__":
    sys.exit(main())
