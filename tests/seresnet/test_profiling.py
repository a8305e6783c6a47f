"""The trace of some steps: what is in it, that it changes no bit, and that no disk and no end of a run is in its way."""

import gzip
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seresnet import profiling, recipe, train
from seresnet.config import AugmentConfig, DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig, run_id, to_dict
from seresnet.profiling import WARM_UP_STEPS, Row, StepProfiler, rows, table
from seresnet.run_folder import RunFolder, RunRecord, TrainResult
from seresnet.signals import StopFlag
from seresnet.world import World

CPU = torch.device("cpu")
ALONE = World(rank=0, local_rank=0, size=1, device=CPU)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 training and 8 test images of two classes, 16 x 16."""
    folder, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 4)):
        for name in ("a", "b"):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / part / name / f"{number}.png")
    return folder


def trained(tmp_path: Path, images: Path, profile_steps: int) -> tuple[RunFolder, TrainResult]:
    """A run of 4 epochs of 5 steps, with as many steps of it traced."""
    config = RunConfig(
        model=ModelConfig(width=4, blocks=(1,)),
        data=DataConfig(name="folder", path=str(images), dir=str(images.parent / "arrays")),
        augment=AugmentConfig(autoaugment="none", crop_padding=2),
        optim=OptimConfig(lr=0.1, warmup_epochs=0),
        train=TrainConfig(epochs=4, global_batch_size=8, device="cpu", amp="off"),
    )
    folder = RunFolder(path=tmp_path / f"profiled-{profile_steps}")
    folder.create()
    record = RunRecord(run_id=run_id(config), slug="run", config=to_dict(config))
    record.write(folder)
    attempt = recipe.Attempt(folder=folder, record=record, config=config, generation=1, base=None, profile_steps=profile_steps)
    result = recipe.train(attempt, ALONE, StopFlag())
    assert result is not None
    return folder, result


def test_a_profiled_run_has_the_bits_of_one_that_is_not_and_leaves_a_trace(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profiled, with_trace = trained(tmp_path, images, 3)
    printed = capsys.readouterr().out
    _, without = trained(tmp_path, images, 0)
    assert with_trace.state_digest == without.state_digest
    names = sorted(path.name for path in profiled.profile.iterdir())
    assert names == ["g0001-s000000006-000000008.json.gz", "g0001-s000000006-000000008.txt"], names
    events = json.loads(gzip.decompress((profiled.profile / names[0]).read_bytes()))["traceEvents"]
    found = {row.name: row.calls for row in rows(events, "cpu")}
    assert found.get("aten::convolution_backward") == 3 * 3, f"3 steps of 3 convolutions: {found}"
    assert (profiled.profile / names[1]).read_text() in printed and "aten::convolution_backward" in printed, printed


def test_a_run_that_ends_before_the_trace_is_full_leaves_what_there_is(tmp_path: Path, images: Path) -> None:
    folder, result = trained(tmp_path, images, 100)
    names = sorted(path.name for path in folder.profile.iterdir())
    assert result.epochs == 4 and names == ["g0001-s000000006-000000020.json.gz", "g0001-s000000006-000000020.txt"], names


def steps(profiler: StepProfiler, count: int) -> None:
    for step in range(1, count + 1):
        torch.ones(4, 4) @ torch.ones(4, 4)
        profiler.after_step(step)


def test_a_disk_that_takes_half_a_trace_ends_no_training_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def torn(self: object, path: str) -> None:
        Path(path).write_text('{"traceEvents": [{"ph": "X"')

    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", torn)
    profiler = StepProfiler(RunFolder(path=tmp_path), 1, 2, CPU)
    steps(profiler, WARM_UP_STEPS + 5)
    assert "the trace is torn. Is the disk full?" in caplog.text and caplog.text.count("profile_not_written") == 1, caplog.text
    assert list((tmp_path / "profile").iterdir()) == []


def test_a_folder_that_cannot_be_made_ends_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "profile").write_text("a file in the way")
    profiler = StepProfiler(RunFolder(path=tmp_path), 1, 1, CPU)
    steps(profiler, WARM_UP_STEPS + 3)
    assert "profile_not_written" in caplog.text and profiler.is_over, caplog.text


def test_a_run_too_short_for_a_trace_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    profiler = StepProfiler(RunFolder(path=tmp_path), 1, 2, CPU)
    steps(profiler, 3)
    with caplog.at_level(logging.ERROR):
        profiler.finish(3)
    assert "the run ended 3 steps after this start" in caplog.text and not (tmp_path / "profile").exists(), caplog.text


def event(name: str, ts: float, dur: float, tid: int = 1, cat: str = "cpu_op") -> profiling.Event:
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": ts, "dur": dur}


def test_time_within_another_operator_counts_once() -> None:
    nested = [event("outer", 0, 100), event("inner", 10, 30), event("leaf", 15, 5), event("inner", 50, 40), event("after", 100, 7)]
    elsewhere = [event("other", 5, 50, tid=2), event("noise", 0, 500, cat="python_function"), {"ph": "M", "name": "meta"}]
    found = rows([*reversed(nested), *elsewhere], "cpu")
    assert [(row.name, row.calls, row.us) for row in found] == [
        ("inner", 2, 65.0),
        ("other", 1, 50.0),
        ("outer", 1, 30.0),
        ("after", 1, 7.0),
        ("leaf", 1, 5.0),
    ]


def test_on_a_gpu_kernels_count_and_the_operators_that_launch_them_do_not() -> None:
    found = rows([event("aten::mm", 0, 100), event("gemm", 50, 20, tid=7, cat="kernel"), event("copy", 90, 5, 7, "gpu_memcpy")], "cuda")
    assert [(row.name, row.us) for row in found] == [("gemm", 20.0), ("copy", 5.0)]


def test_self_times_are_those_of_torch() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.nn.functional.conv2d(torch.ones(2, 3, 8, 8), torch.ones(4, 3, 3, 3)).relu().sum()
    kineto = [
        event(e.name(), e.start_ns() / 1e3, e.duration_ns() / 1e3, e.start_thread_id()) for e in profile.profiler.kineto_results.events()
    ]
    ours = {row.name: (row.calls, row.us) for row in rows(kineto, "cpu")}
    for theirs in profile.key_averages():
        assert ours[theirs.key][0] == theirs.count
        assert ours[theirs.key][1] == pytest.approx(theirs.self_cpu_time_total, abs=0.5), theirs.key


def test_the_table_is_80_columns_wide_and_adds_up() -> None:
    found = [Row(name="k" * 200, calls=30, us=6000.0), *(Row(name=f"kernel {i}", calls=10, us=100.0) for i in range(20))]
    lines = table(found, 10).splitlines()
    assert {len(line) for line in lines} == {80} and len(lines) == 1 + 15 + 2, [len(line) for line in lines]
    assert lines[1].split()[1:] == ["3.0", "0.600", "75.0"] and lines[-2].split() == ["6", "others", "0.060", "7.5"], lines


@pytest.mark.parametrize(("words", "said"), [
    (["--profile", "0"], "argument --profile: 0 is not a number of steps. Use 1 or more"),
    (["--profile", "-3"], "argument --profile"),
    (["--profile", "many"], "argument --profile: many is not a number of steps. Use 1 or more"),
    (["--profile", "101"], "101 steps are too many: a trace is held in memory. Use 100 or fewer"),
    (["--profile", "5", "--trial", "5"], "not allowed with argument"),
])  # fmt: skip
def test_a_bad_number_of_steps_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        train.main(["--config", "nowhere.yaml", *words])
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_no_attempt_is_traced_unless_somebody_asks(tmp_path: Path, images: Path) -> None:
    folder, result = trained(tmp_path, images, 0)
    assert not folder.profile.exists() and replace(result, multiply_adds=None) != result, "the result counts multiply-adds"
