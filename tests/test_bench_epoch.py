"""bench/epoch.py, overhead.py, growth.py and the plain script that they measure against. Timing itself is never asserted."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from seresnet.config import DataConfig, ModelConfig
from seresnet.models import build_model, count_parameters
from seresnet.prepare import load_arrays, prepare

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import plain_script  # noqa: E402
from paced import Paced  # noqa: E402
from sample_data import made_up, write_official  # noqa: E402


def run(script: str, *words: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, str(BENCH / script), *words], cwd=cwd, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, f"{script}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_the_plain_network_has_the_reports_number_of_parameters() -> None:
    counts = {width: count_parameters(plain_script.SEResNet(width)) for width in (16, 64)}
    ours = count_parameters(build_model(ModelConfig(attention="se", width=16), 10, seed=0))
    assert counts == {16: ours, 64: 4_733_610}, counts


def test_the_plain_network_computes_what_ours_does_with_the_same_weights() -> None:
    ours, plain = build_model(ModelConfig(attention="se", width=8), 10, seed=3).double(), plain_script.SEResNet(8).double()
    with torch.no_grad():
        for theirs, mine in zip(plain.parameters(), ours.parameters(), strict=True):
            theirs.copy_(mine.view_as(theirs))
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    difference = (plain(images) - ours(images)).abs().max().item()
    assert difference < 1e-9, difference


def test_both_sides_read_the_same_images_from_the_same_files(tmp_path: Path) -> None:
    sample = made_up(53, 11)
    folder = write_official(tmp_path, sample)
    ours = load_arrays(prepare(DataConfig(name="cifar10", path=str(folder)), tmp_path / "data"))
    plain = plain_script.read_images(folder)
    mine = (ours.train_images, ours.train_labels, ours.test_images, ours.test_labels)
    equal = [np.array_equal(own, theirs) for own, theirs in zip(mine, plain, strict=True)]
    assert all(equal), equal
    assert np.array_equal(ours.train_images, sample.train_images)


def test_the_plain_script_saves_what_it_resumes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plain_script, "prepare_torch", lambda args: None)  # seeds and threads are this process's
    words = ["--width", "4", "--batch-size", "8", "--workers", "0", "--threads", "1", "--device", "cpu", "--amp", "off"]
    words += ["--data", str(write_official(tmp_path, made_up(20, 10))), "--schedule-epochs", "20", "--resume"]
    words += ["--save", str(tmp_path / "plain.pt")]
    plain_script.main([*words, "--epochs", "1"])
    first = capsys.readouterr().out
    plain_script.main([*words, "--epochs", "2"])
    second = capsys.readouterr().out
    assert "epoch=1 " in first and "epoch=2 " in second and "epoch=1 " not in second, (first, second)


def test_a_paced_program_that_fails_shows_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no such luck"):
        Paced("it", ["-c", "raise SystemExit('no such luck')"], tmp_path, {})


def test_the_overhead_is_told_in_parts(tmp_path: Path) -> None:
    run("overhead.py", "--quick", "--width", "4", "--json", "out.json", cwd=tmp_path)
    rows = {row["what"].strip(): row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    (ratio,) = (row["value"] for what, row in rows.items() if what.endswith("an epoch over its bare steps"))
    assert ratio["n"] == 2 and ratio["median"] > 0, ratio
    missing = {"augmentation", "sums", "agreement", "saving", "end of the epoch"} - {what.removeprefix("of it ") for what in rows}
    assert not missing, f"{missing} not in {sorted(rows)}"


@pytest.mark.slow
def test_whole_epochs_of_both_sides_take_turns(tmp_path: Path) -> None:
    out = run("epoch.py", "--quick", "--width", "4", "--plain-threads", "1", "--set", "train.threads=1", cwd=tmp_path)
    assert "ours: after epoch 2" in out and "plain: after epoch 2" in out and "ours against plain" in out, out


@pytest.mark.nightly
def test_the_cost_of_growing_is_printed_beside_what_was_predicted(tmp_path: Path) -> None:
    out = run("growth.py", "--quick", cwd=tmp_path)
    assert out.count("predicted") >= 5, out
