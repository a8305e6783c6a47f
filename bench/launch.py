"""How long it takes to plan and submit a sweep of 1,000 runs, beside submitit's own `map_array` of as many jobs; with real sbatch calls.

`python bench/launch.py` prints both times and where the launcher's goes; `--check` fails (exit 1) above 10 times. It starts a private
Slurm cluster (tests/slurm/cluster.py) and works there as an ordinary user; where that cannot be, it says why and exits 2.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "tests" / "slurm"))

AT_MOST = 10.0

#: Both sides run as the ordinary user, in one process each, after their imports: what is compared is work, not Python's start.
_LAUNCH = """
import cProfile, json, pstats, sys, time
from io import StringIO
from pathlib import Path
from rich.console import Console
import submitit, yaml
from hpc.launcher import Request, launch
request = Request(sweep_file=Path(sys.argv[1]))
profile = cProfile.Profile() if sys.argv[2] == "profile" else None
started = time.perf_counter()
if profile: profile.enable()
code = launch(request, Console(file=StringIO(), width=160))
if profile: profile.disable()
seconds, rows = time.perf_counter() - started, []
if profile:
    for (file, line, name), (_, calls, own, total, _) in pstats.Stats(profile).stats.items():
        rows.append([name if file == "~" else f"{Path(file).parent.name}/{Path(file).name}:{name}", calls, own, total])
print(json.dumps({"code": code, "seconds": seconds, "rows": rows}))
"""
_MAP_ARRAY = """
import json, sys, time
import submitit
executor = submitit.AutoExecutor(folder=sys.argv[1], cluster="slurm")
executor.update_parameters(timeout_min=5, slurm_partition="low", cpus_per_task=1, slurm_array_parallelism=1)
started = time.perf_counter()
jobs = executor.map_array(print, range(int(sys.argv[2])))
print(json.dumps({"jobs": len(jobs), "seconds": time.perf_counter() - started}))
"""
_SWEEP = """\
name: bench
base:
  data: {{name: digits}}
  optim: {{warmup_epochs: 0}}
  train: {{epochs: 2, global_batch_size: 128, device: cpu, amp: off, channels_last: false}}
arms:
  baseline: {{}}
  se: {{model.attention: se}}
seeds: {seeds}
site: {{extends: slurm, partition: low, gpu_request: none, cpus_per_rank: 1, walltime_min: 5, array_parallelism: 1}}
"""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    from cluster import up, why_not

    if reason := why_not():
        print(f"bench/launch.py: no private Slurm cluster: {reason}", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="hpc-bench-"))
    cluster = up(folder, max_array_size=args.runs + 1)
    try:
        # Nothing may run meanwhile: the tasks would take the cores that are measured.
        for node in ("n1", "n2"):
            cluster.command("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=bench")
        return _measure(cluster, args)
    finally:
        cluster.stop()
        shutil.rmtree(folder)


def _measure(cluster, args: argparse.Namespace) -> int:  # type: ignore[no-untyped-def]
    from scenes import copy_code

    code = copy_code(cluster, cluster.work / "code")
    (code / "bench.yaml").write_text(_SWEEP.format(seeds=args.runs // 2))
    cluster.give_to_user(code)

    def ask(program: str, *words: str) -> dict[str, object]:
        env = {"PYTHONPATH": str(code), "WANDB_MODE": "disabled"}
        done = cluster.run_as_user([sys.executable, "-c", program, *words], cwd=code, env=env, timeout_s=1200)
        answer: dict[str, object] = json.loads(str(done.stdout).splitlines()[-1])
        cluster.command("scancel", "-u", "hpctest", check=False)
        return answer

    ask(_LAUNCH, "bench.yaml", "plain")  # prepares the data set, and warms every cache
    theirs, ours = [], []
    for number in range(args.repeat):
        shutil.rmtree(code / "runs")
        theirs.append(float(ask(_MAP_ARRAY, f"maps-{number}", str(args.runs))["seconds"]))
        ours.append(float(ask(_LAUNCH, "bench.yaml", "plain")["seconds"]))
    ratio = min(ours) / min(theirs)
    shown = [f"{seconds:.2f}" for seconds in ours], [f"{seconds:.2f}" for seconds in theirs]
    print(f"runs: {args.runs}, best of {args.repeat}, {os.cpu_count()} cores")
    print(f"hpc.launch, planned, written and submitted: {min(ours):6.2f} s   ({', '.join(shown[0])})")
    print(f"submitit map_array of as many jobs:         {min(theirs):6.2f} s   ({', '.join(shown[1])})")
    print(f"ratio: {ratio:.1f} (at most {AT_MOST:.0f})")
    if args.profile:
        shutil.rmtree(code / "runs")
        _print_profile(ask(_LAUNCH, "bench.yaml", "profile")["rows"])
    return 1 if args.check and ratio > AT_MOST else 0


def _print_profile(rows) -> None:  # type: ignore[no-untyped-def]
    print("\nseconds with all it calls | own | calls | function (under the profiler, which slows Python down)")
    for name, calls, own, total in sorted(rows, key=lambda row: -row[3])[:45]:
        print(f"{total:8.3f} {own:8.3f} {calls:8d}  {name}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench/launch.py", description="Time to launch 1,000 runs, beside submitit's map_array.")
    parser.add_argument("--check", action="store_true", help=f"exit 1 if the launch takes more than {AT_MOST:.0f} times as long")
    parser.add_argument("--profile", action="store_true", help="print where the launcher's time goes")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=3, help="the best of so many")
    return parser


if __name__ == "__main__":
    sys.exit(main())
