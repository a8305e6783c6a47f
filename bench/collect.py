"""Collecting 10,000 finished runs of 900 epochs each: cold, warm, with every history, after 100 runs changed, and how much memory.

    python bench/collect.py [--runs 10000] [--check] [--quick] [--json FILE]

Counted is, within one process, from sweep folder to the text of table.md and runs.csv: gather, statistics, formatting. Not counted are
the start of the interpreter and imports (0.5 s of pandas), drawing, and the page. Each round is a process of its own, so that nothing but
files is shared; peak memory is that of the process, imports included. "Histories" are all columns of all epochs of all runs, fetched run
by run as figures do. "Carried on" are runs with one more attempt: a line in the journal, a claim and its end, another result.json.
The plain way is json.loads of every line, a DataFrame a run, and a groupby: what one writes in a notebook; on as many runs as the table
says. About 7 GB below --dir (by default the temporary folder), removed at the end; most of the time is the first, cold collect.
"""

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from measure import Report, amount, parser, spread

from hpc.paths import Plan, PlannedFolder, SweepFolder
from seresnet.attempts import Owner
from seresnet.config import ModelConfig, RunConfig, TrainConfig, to_dict
from seresnet.durable import canonical_json
from seresnet.journal import SUM, EpochRecord
from seresnet.run_folder import RunFolder, RunRecord, TrainResult

EPOCHS = 900
SEEDS = 100
CHANGED = 100
TEMPLATES = 16
PLAIN_RUNS = 200
ROUNDS = 3
WARM_S, HISTORIES_S, CHANGED_S, PEAK_MIB = 2.0, 6.0, 0.3, 500.0


def main() -> int:
    """Build, measure, print; with --check 1 where a figure is missed."""
    args = _arguments()
    if args.part:
        print(json.dumps(PARTS[args.part](args.sweep)))
        return 0
    report = Report(script="collect.py")
    report.introduce(f"{args.runs} finished runs of {EPOCHS} epochs, {SEEDS} seeds an arm; seconds within a process, from folder to table")
    root = Path(tempfile.mkdtemp(prefix="bench-collect-", dir=args.dir))
    try:
        started = time.perf_counter()
        sweep = build(root, args.runs)
        report.row("build the sweep (not part of anything)", time.perf_counter() - started, "s")
        _measure(report, sweep, args)
    finally:
        shutil.rmtree(root)
    return report.finish(args)


def _arguments() -> argparse.Namespace:
    options = parser(__doc__ or "")
    options.add_argument("--runs", type=int, default=10_000)
    options.add_argument("--dir", type=Path, help="where the sweep is built, and removed")
    options.add_argument("--part", choices=sorted(PARTS), help=argparse.SUPPRESS)
    options.add_argument("--sweep", type=Path, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.quick:
        args.runs = min(args.runs, 300)
    return args


def _measure(report: Report, sweep: SweepFolder, args: argparse.Namespace) -> None:
    rounds = 2 if args.quick else ROUNDS
    time.sleep(2.5)  # what was written just now is not kept
    cold = _run("table", sweep)
    report.row("cold: no cache, which is written (n = 1)", cold["seconds"], "s")
    report.row("peak memory, cold", cold["peak_mib"], "MiB", ceiling=PEAK_MIB)
    size = sum(path.stat().st_size for path in sweep.collect_cache.iterdir()) / 2**20
    report.row("the cache's size", size, "MiB")
    warm = [_run("table", sweep) for _ in range(rounds)]
    warm_s = [each["seconds"] for each in warm]
    report.row("warm", amount(warm_s), "s", ceiling=WARM_S)
    report.row("  of it gather", amount([each["gather"] for each in warm]), "s")
    report.row("peak memory, warm", amount([each["peak_mib"] for each in warm]), "MiB", ceiling=PEAK_MIB)
    full = [_run("histories", sweep) for _ in range(rounds)]
    report.row("warm, every history read", amount([each["seconds"] for each in full]), "s", ceiling=HISTORIES_S)
    report.row("peak memory, every history read", amount([each["peak_mib"] for each in full]), "MiB", ceiling=PEAK_MIB)
    _measure_changed(report, sweep, rounds, min(CHANGED, args.runs // (rounds + 1)), warm_s)
    plain = [_run("plain", sweep) for _ in range(rounds)]
    runs = plain[0]["runs"]
    report.row(f"the plain way, {runs} runs, scaled to {args.runs}", amount([each["seconds"] * args.runs / runs for each in plain]), "s")
    ratios = [slow["seconds"] * args.runs / runs / fast["seconds"] for slow, fast in zip(plain, full, strict=True)]
    report.row("warm with every history, against the plain way", spread(ratios))


def _measure_changed(report: Report, sweep: SweepFolder, rounds: int, count: int, warm_s: list[float]) -> None:
    """Rounds of: change some runs, collect once. The difference is to the warm collect of the same round."""
    seconds, more = [], []
    for number in range(rounds):
        change(sweep, range(number * count, (number + 1) * count), number + 2)
        time.sleep(2.5)
        seconds.append(_run("table", sweep)["seconds"])
        more.append(seconds[-1] - _run("table", sweep)["seconds"])
    report.row(f"{count} runs carried on since the last collect", amount(seconds), "s", ceiling=WARM_S)
    report.row("  more than warm", amount(more), "s", ceiling=CHANGED_S)
    rewrite(sweep, range(count))
    time.sleep(2.5)
    report.row(f"{count} journals written anew, more than warm (n = 1)", _run("table", sweep)["seconds"] - min(warm_s), "s")


# --- the parts, each in a process of its own ---


def _run(part: str, sweep: SweepFolder) -> dict[str, Any]:
    command = [sys.executable, __file__, "--part", part, "--sweep", str(sweep.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"{part}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _table(sweep: Path, with_histories: bool = False) -> dict[str, Any]:
    from hpc import stats, tables
    from hpc.comparison import compare
    from hpc.gather import gather
    from hpc.history import COLUMNS

    started = time.perf_counter()
    gathered = gather([sweep])
    gather_s = time.perf_counter() - started
    text = tables.markdown(compare(gathered))
    text += stats.runs_csv(gathered.rows)
    if with_histories:
        numbers = sum(row.history.column(key).size for row in gathered.rows for key in COLUMNS)
        assert numbers >= len(gathered.rows) * EPOCHS * len(COLUMNS), f"{numbers} numbers"
    seconds = time.perf_counter() - started
    assert text.startswith("Complete") and not gathered.skipped, text[:500]
    return {"seconds": seconds, "gather": gather_s, "peak_mib": _peak_mib()}


def _peak_mib() -> float:
    """Of this process alone: Linux's ru_maxrss begins with what the parent held when it forked (seen: 521 MiB, which was torch)."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _plain(sweep: Path) -> dict[str, Any]:
    import pandas as pd

    started = time.perf_counter()
    rows = []
    for path in sorted(sweep.glob("*/result.json"))[:PLAIN_RUNS]:
        lines = [line for part in sorted(path.parent.glob("metrics/*.jsonl")) for line in part.read_text().splitlines()]
        frame = pd.DataFrame(map(json.loads, lines))
        frame = frame.drop_duplicates("step", keep="last")
        rows.append({**json.loads(path.read_text()), "epochs_done": frame["epoch"].max(), "epoch_s": frame["seconds"].median()})
    runs = pd.DataFrame(rows)
    runs["arm"] = runs["slug"].str.rpartition("-s")[0]
    runs.groupby("arm")[["last_test_top1_pct", "epoch_s"]].agg(["mean", "std"]).to_csv()
    return {"seconds": time.perf_counter() - started, "runs": len(rows)}


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "table": _table,
    "histories": lambda sweep: _table(sweep, with_histories=True),
    "plain": _plain,
}


# --- the sweep ---


def build(root: Path, runs: int) -> SweepFolder:
    """Plain writes from a few templates: nobody trains here."""
    sweep = SweepFolder(root / "bench")
    sweep.path.mkdir()
    ids = [f"{index:012x}" for index in range(runs)]
    arms = {f"arm{number}": tuple(ids[number * SEEDS : (number + 1) * SEEDS]) for number in range((runs + SEEDS - 1) // SEEDS)}
    entries = {
        run_id: PlannedFolder(slug=f"{arm}-s{seed}", folder=f"{arm}-s{seed}-{run_id}", arms=(arm,))
        for arm, members in arms.items()
        for seed, run_id in enumerate(members)
    }
    Plan(sweep="bench", salt="0a1b2c3d", arms=arms, runs=entries, tasks={"0001/0": tuple(ids)}).write(sweep)
    journals = [journal_text(number) for number in range(TEMPLATES)]
    records = _record_texts(list(arms))
    for index, (run_id, entry) in enumerate(entries.items()):
        record = records[entry.arms[0]].replace("RUNID", f"'{run_id}'").replace("SLUG", entry.slug)
        record = record.replace("seed: 0\n", f"seed: {index % SEEDS}\n")
        _build_run(RunFolder(path=sweep.path / entry.folder), run_id, entry.slug, record, journals[index % TEMPLATES])
    return sweep


def _record_texts(arms: list[str]) -> dict[str, str]:
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(path=Path(scratch))
        for number, arm in enumerate(arms):
            config = RunConfig(model=ModelConfig(width=16 + 8 * number), train=TrainConfig(epochs=EPOCHS, device="cuda"))
            RunRecord(run_id="RUNID", slug="SLUG", config=to_dict(config)).write(folder)
            found[arm] = folder.run_yaml.read_text()
    return found


def _build_run(folder: RunFolder, run_id: str, slug: str, record: str, journal: bytes) -> None:
    for path in (folder.path, folder.attempts, folder.metrics, folder.checkpoints):
        path.mkdir()
    folder.run_yaml.write_text(record)
    folder.journal(1).write_bytes(journal)
    _attempt(folder, 1)
    folder.result.write_text(_result_text(run_id, slug))


def _attempt(folder: RunFolder, generation: int) -> None:
    owner = Owner(host="gpu1", pid=1, array_job_id="7_0", started=1.7e9 + generation, facts={"code_digest": "c" * 16})
    claim = {"schema": 1, "generation": generation, "base": None, "owner": asdict(owner)}
    folder.claim(generation).write_text(json.dumps(claim))
    end = {"schema": 1, "generation": generation, "time": 1.7e9 + generation + 9000, "ending": "finished", "reason": None}
    folder.end(generation).write_text(json.dumps(end))
    folder.beat(generation).write_text("900")


def journal_text(template: int, generation: int = 1, epochs: range = range(1, EPOCHS + 1)) -> bytes:
    """Lines as journal.append writes them, floats with all their digits."""
    lines = []
    for epoch in epochs:
        noise = ((epoch * 7919 + template * 104_729) % 99_991) / 99_991
        values = asdict(_epoch(epoch, generation, noise))
        lines.append(json.dumps({**values, SUM: _crc(values)}) + "\n")
    return "".join(lines).encode()


def _crc(values: dict[str, Any]) -> int:
    return zlib.crc32(canonical_json(values).encode())


def _epoch(epoch: int, generation: int, noise: float) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        step=98 * epoch,
        generation=generation,
        lr=0.1 * (1 - epoch / (EPOCHS + 1)),
        train_loss=2.3 - noise,
        train_top1_pct=90 * noise,
        val_loss=1.1 + noise / 3,
        val_top1_pct=round(90 + 5 * noise, 2),
        test_loss=1.2 + noise / 7,
        test_top1_pct=round(89 + 5 * noise, 2),
        skipped_steps=0,
        seconds=9 + noise,
        images_per_s=4567 + noise,
        time=1.7e9 + 9.5 * epoch + noise,
        train_seconds=8 + noise,
        eval_seconds=1 + noise / 9,
        data_wait_s=noise / 100,
        checkpoint_stall_s=noise / 77,
        tflops=30 + noise,
        matmul_share_pct=40 + noise,
        memory_peak_mib=12345.5,
    )


def _result_text(run_id: str, slug: str, attempts: int = 1) -> str:
    wobble = int(run_id, 16) % 97 / 97
    classes = [f"class {number}" for number in range(10)]
    result = TrainResult(
        run_id=run_id,
        slug=slug,
        epochs=EPOCHS,
        step=98 * EPOCHS,
        parameters=4_733_610,
        state_digest=f"{int(run_id, 16):064x}",
        data_digest="feedfacecafe0123" * 4,
        data_name="CIFAR-10",
        train_images=45_000,
        val_images=5_000,
        test_images=10_000,
        classes=classes,
        train_loss=1.1,
        last_val_top1_pct=94 + wobble,
        last_test_top1_pct=93 + wobble,
        last_test_loss=0.3,
        val_chosen_epoch=880,
        val_chosen_val_top1_pct=94.5 + wobble,
        val_chosen_test_top1_pct=93.1 + wobble,
        best_on_test_epoch=870,
        best_on_test_top1_pct=93.9 + wobble,
        confusion=[[931 if row == column else 8 for column in range(10)] for row in range(10)],
        seconds=8550.5 + wobble,
        attempts=attempts,
        tier="T1",
        world_size=1,
        device="cuda: NVIDIA H100",
        amp="bf16",
        code_digest="c" * 16,
        commit="0123456789abcdef" * 2,
        versions={"python": "3.11.9", "torch": "2.14.1"},
    )
    return json.dumps(asdict(result), indent=1, sort_keys=True) + "\n"


def change(sweep: SweepFolder, places: range, generation: int) -> None:
    """A later attempt did the last epoch again: its line, its records, another result."""
    plan = Plan.read(sweep)
    line = journal_text(3, generation, range(EPOCHS, EPOCHS + 1))
    for run_id, entry in list(plan.runs.items())[places.start : places.stop]:
        folder = RunFolder(path=sweep.path / entry.folder)
        with open(folder.journal(1), "ab") as file:
            file.write(line)
        _attempt(folder, 2)
        folder.result.write_text(_result_text(run_id, entry.slug, attempts=2))


def rewrite(sweep: SweepFolder, places: range) -> None:
    """Other journals altogether: nothing that was read of them is of use."""
    text = journal_text(TEMPLATES + 1)
    for entry in list(Plan.read(sweep).runs.values())[places.start : places.stop]:
        RunFolder(path=sweep.path / entry.folder).journal(1).write_bytes(text)


if __name__ == "__main__":
    sys.exit(main())
