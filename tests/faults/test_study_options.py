"""What the study varies, killed and resumed with the same bits: attention, bottlenecks, stochastic depth, AugMix, noise, SGDR, averages."""

from collections.abc import Generator
from pathlib import Path

import pytest
import ranks as ring
import yaml

from seresnet.journal import read
from seresnet.run_folder import RunFolder, TrainResult

#: All options that keep or draw something of their own, in one run. Its rates go up again at epochs 3 and 5.
OPTIM = {"ema_decay": 0.9, "schedule": "restarts", "restart_epochs": 1, "clip_norm": 0.5, "decay_on": "weights", "nesterov": True}
AUGMENT = {"autoaugment": "none", "augmix_severity": 3, "noise_std": 0.1}
MODEL = {"block": "bottleneck", "drop_path": 0.5}


def varied(folder: Path, digits_dir: Path, ranks: int, attention: str) -> Path:
    folder.mkdir(parents=True)
    path = ring.tiny_config(folder, digits_dir, ranks)
    config = yaml.safe_load(path.read_text())
    config["optim"] |= OPTIM
    config["augment"] |= AUGMENT
    config["model"] |= MODEL | {"attention": attention}
    path.write_text(yaml.safe_dump(config))
    return path


def killed_and_resumed(folder: Path, digits_dir: Path, ranks: int, attention: str) -> Generator[None, None, TrainResult]:
    config, run_dir = varied(folder, digits_dir, ranks, attention), folder / "run"
    how = {"hook": "traces:steps"}
    codes = yield from ring.attend(
        ring.start(config, run_dir, ranks, environ={"TRACE_ATTEMPT": "1", "TRACE_DO": "KILL before 16 0"}, **how)
    )
    assert -9 in codes, f"nobody was killed, {codes}\n{ring.output(run_dir)[-3000:]}"
    return (yield from ring.finishing(config, run_dir, ranks, environ={"TRACE_ATTEMPT": "2"}, **how))


@pytest.mark.parametrize(("attention", "ranks"), [("cbam", 1), ("eca", 2), ("scse", 1), ("simam", 1)])
def test_killed_and_resumed_every_option_has_the_same_bits(digits_dir: Path, tmp_path: Path, attention: str, ranks: int, report) -> None:
    undisturbed = ring.finish(varied(tmp_path / "whole", digits_dir, ranks, attention), tmp_path / "whole" / "run", ranks)
    (result,) = ring.together([killed_and_resumed(tmp_path / "killed", digits_dir, ranks, attention)])
    assert result.state_digest == undisturbed.state_digest, f"{attention}: the state differs"
    assert (result.last_test_loss, result.confusion) == (undisturbed.last_test_loss, undisturbed.confusion)
    report(f"{attention}, bottlenecks, stochastic depth, AugMix, noise, restarts, {ranks} ranks", "1 kill", "digests equal")


def test_two_ranks_augment_and_drop_the_blocks_of_the_same_images_as_one(digits_dir: Path, tmp_path: Path) -> None:
    losses = {}
    for ranks in (1, 2):
        config = varied(tmp_path / str(ranks), digits_dir, ranks, "eca")
        # One micro-batch size for both, or batch norm would see other samples.
        config.write_text(config.read_text().replace("micro_batch_size: 32", "micro_batch_size: 16"))
        ring.finish(config, tmp_path / str(ranks) / "run", ranks)
        losses[ranks] = [record.train_loss for record in read(RunFolder(path=tmp_path / str(ranks) / "run"))]
    assert losses[1] == pytest.approx(losses[2], rel=1e-3), losses
