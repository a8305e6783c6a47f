"""Samples of GPU use, against a stand-in for nvidia-smi."""

import sys
import time
from pathlib import Path

import pytest
from test_supervisor import PROGRAM, _sweep

from hpc import gpu_use, supervisor
from hpc.gpu_use import Sampler, mean_util_pct, read_use, sample
from hpc.requeue import Verdict
from hpc.task import Job
from seresnet import claims
from seresnet.run_folder import RunFolder
from seresnet.signals import StopFlag

pytestmark = pytest.mark.usefixtures("no_slurm")

TWO_GPUS = "0, GPU-aa, NVIDIA H100 80GB HBM3, 37, 1234, 81559\n1, GPU-bb, NVIDIA H100 80GB HBM3, [N/A], 9, 81559\n"


def _smi(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!{sys.executable}\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize(
    ("visible", "ids"), [("1", ["GPU-bb"]), ("GPU-aa", ["GPU-aa"]), ("MIG-7,MIG-8", ["GPU-aa", "GPU-bb"]), (None, ["GPU-aa", "GPU-bb"])]
)
def test_a_sample_is_of_the_gpus_that_the_task_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, ids: list[str]
) -> None:
    _smi(tmp_path, monkeypatch, f"print({TWO_GPUS!r}, end='')")
    found = sample({"CUDA_VISIBLE_DEVICES": visible} if visible else {})
    assert found is not None and [gpu.id for gpu in found.gpus] == ids


@pytest.mark.parametrize("visible", ["", "NoDevFiles", "-1"])
def test_a_task_without_gpus_is_not_shown_those_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    _smi(tmp_path, monkeypatch, f"print({TWO_GPUS!r}, end='')")
    assert sample({"CUDA_VISIBLE_DEVICES": visible}) is None


def test_figures_are_those_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _smi(tmp_path, monkeypatch, f"print({TWO_GPUS!r}, end='')")
    found = sample({})
    assert found is not None
    first, second = found.gpus
    assert (first.name, first.util_pct, first.memory_used_mb, first.memory_total_mb) == ("NVIDIA H100 80GB HBM3", 37.0, 1234.0, 81559.0)
    assert second.util_pct is None and mean_util_pct([found]) == 37.0


@pytest.mark.parametrize("body", ["import time; time.sleep(60)", "import sys; sys.exit(9)", "print('No devices were found')"])
def test_a_driver_that_is_stuck_or_gone_gives_no_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    monkeypatch.setattr(gpu_use, "SMI_LIMIT_S", 0.5)
    _smi(tmp_path, monkeypatch, body)
    assert sample({}) is None


def test_without_nvidia_smi_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sample({}) is None
    target = tmp_path / "use.jsonl"
    Sampler(lambda: [target], {}, every_s=0.01).start().stop()
    assert not target.exists()


def test_stopping_does_not_wait_for_a_sample_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _smi(tmp_path, monkeypatch, f"import time; time.sleep(3); print({TWO_GPUS!r})")
    sampler = Sampler(lambda: [tmp_path / "use.jsonl"], {}, every_s=0.01).start()
    time.sleep(0.3)
    before = time.monotonic()
    sampler.stop()
    assert time.monotonic() - before < 0.5


def test_torn_lines_are_left_out_and_the_mean_is_of_the_window(tmp_path: Path) -> None:
    folder = RunFolder(path=tmp_path)
    folder.create()
    line = '{"time": %d, "gpus": [{"id": "G", "name": "x", "util_pct": %d, "memory_used_mb": 1.0, "memory_total_mb": 2.0}]}\n'
    folder.gpu_use(1).write_text(line % (1000, 90))
    folder.gpu_use(2).write_text(line % (2000, 10) + line % (2060, 20) + '{"time": 2100, "gp')
    samples = read_use(folder)
    assert [found.time for found in samples] == [1000, 2000, 2060] and len(read_use(folder, 1)) == 1
    assert (mean_util_pct(samples), mean_util_pct(samples, 100), mean_util_pct([])) == (40.0, 15.0, None)


def test_a_cancelled_attempt_says_how_busy_its_gpus_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _smi(tmp_path, monkeypatch, f"print({TWO_GPUS!r}, end='')")
    monkeypatch.setattr(supervisor, "Sampler", lambda targets, environ: Sampler(targets, environ, every_s=0.1))
    said = Verdict(ending="cancelled", requeue=False, reason="by the user or the site (JobState=COMPLETING)")
    monkeypatch.setattr(Job, "judge", lambda job: said)
    sweep, stop = _sweep(tmp_path, "serve"), StopFlag()
    _stop_after(sweep.path / "run0/attempts/000001.use.jsonl", stop)
    assert supervisor.run_task(sweep, "0001/0", stop=stop, rank_command=PROGRAM) == 75
    end = claims.read_end(RunFolder(path=sweep.path / "run0"), 1)
    assert end is not None and end.ending == "cancelled"
    assert str(end.reason).endswith("by the user or the site (JobState=COMPLETING); GPU use 37 % in the last 120 min")


def _stop_after(path: Path, stop: StopFlag) -> None:
    from test_supervisor import _when

    _when(path, lambda: setattr(stop, "signal_name", "SIGTERM"))
