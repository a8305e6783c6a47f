"""What `pack: auto` suggests, from figures made up for the purpose: how many runs of such a need fit a GPU."""

import json
from pathlib import Path

import pytest
from fake_sweep import FakeSweep

from hpc import pack_advice
from hpc.pack_advice import Need
from hpc.timings import Known, shape_digest
from seresnet.config import to_dict


@pytest.mark.parametrize(
    ("util_pct", "memory_gb", "total_gb", "runs"),
    [(21, 3.1, 80, 4), (21, 30, 80, 2), (45, 3.1, 80, 2), (60, 3.1, 80, 1), (5, 3.1, 80, 8), (5, 50, 80, 1), (0, 3.1, 80, 8)],
)
def test_runs_that_fit_a_gpu_share_nine_tenths_of_its_time_and_memory(
    util_pct: float, memory_gb: float, total_gb: float, runs: int
) -> None:
    need = Need(util_pct=util_pct, memory_mb=1000 * memory_gb, total_mb=1000 * total_gb, gpu="H100")
    assert pack_advice.fitting(need) == runs


def test_suggestions_show_the_numbers_they_come_from() -> None:
    light, heavy = (
        Need(util_pct=21, memory_mb=3100, total_mb=80_000, gpu="H100"),
        Need(util_pct=78, memory_mb=9000, total_mb=80_000, gpu="V100"),
    )
    assert pack_advice.suggestion([light]) == "auto: 1 run uses 21 % and 3.1 of 80 GB of an H100: try pack: {mode: concurrent, per_gpu: 4}"
    assert pack_advice.suggestion([light, heavy]) == "auto: 1 run uses 78 % and 9.0 of 80 GB of a V100: one run a GPU is right"
    only_memory = Need(util_pct=None, memory_mb=3100, total_mb=None, gpu="H200")
    assert pack_advice.suggestion([only_memory]) == (
        "auto: 1 run holds 3.1 GB of an H200; how busy it keeps it is not known: train one for some minutes"
    )


def known(sweep: FakeSweep) -> Known:
    configs = {run_id: to_dict(config) for run_id, config in sweep.configs.items()}
    return Known(sweep.folder, sweep.plan, configs, begun=list(configs))


def sample(util_pct: float | None, memory_mb: float) -> str:
    gpu = {"id": "GPU-1", "name": "NVIDIA H100 80GB HBM3", "util_pct": util_pct, "memory_used_mb": memory_mb, "memory_total_mb": 81559.0}
    return json.dumps({"time": 1.0, "gpus": [gpu]}) + "\n"


def test_need_is_the_median_use_and_the_most_memory_of_runs_that_were_alone(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path)
    path = sweep.of("se", 0).attempts / "000001.use.jsonl"
    path.write_text(sample(20, 3000) + sample(22, 3100) + sample(95, 2000) + "{torn")
    (sweep.of("se", 1).attempts / "000001.use.jsonl").write_text(sample(99, 70_000))
    beside = {sweep.of("se", 1).path.name: 4}
    need = pack_advice.measured(known(sweep), sweep.ids["se", 0], beside)
    assert need == Need(util_pct=22, memory_mb=3100, total_mb=81559, gpu="H100")
    assert pack_advice.measured(known(sweep), sweep.ids["baseline", 0], beside) is None


def test_a_trial_tells_the_memory_where_no_run_was_sampled(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path)
    report = {"time": 1.0, "epoch_s": 10.0, "checkpoint_bytes": 1, "steps": 20, "peak_memory_mb": 2500.0, "ranks": 1, "gpu": "NVIDIA H200"}
    shape = shape_digest(to_dict(sweep.configs[sweep.ids["se", 0]]))
    sweep.folder.trials.mkdir()
    (sweep.folder.trials / "smoke-0001.end.json").write_text(json.dumps({"x": {"shape": shape, "report": report}}))
    assert pack_advice.measured(known(sweep), sweep.ids["se", 0], {}) == Need(util_pct=None, memory_mb=3100, total_mb=None, gpu="H200")
