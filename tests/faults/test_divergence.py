"""Losses that are not finite, in real ranks: what the hardware did once is replayed away, what the run does itself ends it."""

import json
import random
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import ranks as ring
import yaml
from conftest import Amount, Report

from seresnet import attempts, journal
from seresnet.checkpoint import main as checkpoint
from seresnet.replay import MARGIN_STEPS, Replay, read_replays
from seresnet.run_folder import RunFolder, TrainResult

HOOK = "faulty_numbers:plant"
ROW = "NaN once, NaN always, fp16 overflow, loss spike"
SIZES = (1, 2)


def _start(tmp_path: Path, digits_dir: Path, size: int, fault: dict[str, Any], **train: Any) -> tuple[Path, Path]:
    (tmp_path / "fault.json").write_text(json.dumps(fault))
    return ring.tiny_config(tmp_path, digits_dir, size, **train), tmp_path / "run"


def _replays(run_dir: Path) -> list[Replay]:
    return read_replays(RunFolder(path=run_dir))


def _output(tmp_path: Path) -> str:
    return (tmp_path / "output.txt").read_text()[-4000:]


def _assert_hardware_is_named(run_dir: Path, count: int = 1) -> None:
    replays, output = _replays(run_dir), (run_dir.parent / "output.txt").read_text()
    assert [replay.outcome for replay in replays] == ["gone"] * count, f"{replays}\n{output[-3000:]}"
    assert replays[0].hosts == (socket.gethostname(),)
    assert f"node {socket.gethostname()} is suspect" in output, output[-3000:]
    lying = {path.name for path in (run_dir / "ckpt/bad").iterdir()} if (run_dir / "ckpt/bad").is_dir() else set()
    assert {name for replay in replays for name in replay.suspects} <= lying, (replays, lying)


@pytest.mark.parametrize("size", SIZES)
def test_nan_once_is_replayed_away(size: int, digits_dir: Path, tmp_path: Path, amount: Amount, report: Report) -> None:
    count = amount(1, 2, 8)
    draw = random.Random(size)
    for number in range(count):
        folder = tmp_path / str(number)
        folder.mkdir()
        # Also in the first step, and where no step is left for the replay to prove itself in.
        step = [2, 28, 0][number] if number < 3 else draw.randrange(30)
        config, run_dir = _start(folder, digits_dir, size, {"kind": "nan once", "steps": [step], "rank": size - 1})
        result = ring.finish(config, run_dir, size, hook=HOOK)
        _assert_hardware_is_named(run_dir)
        ring.assert_same(run_dir, ring.undisturbed(digits_dir, size), f"NaN once before step {step}")
        assert result.attempts == 1, f"{result.attempts} attempts: it is replayed in the attempt itself"
    report(ROW, f"{count} x NaN once, {size} ranks", "replayed: equal digests, the node is named")


@pytest.mark.parametrize("size", SIZES)
def test_nan_always_is_diverged(size: int, digits_dir: Path, tmp_path: Path, report: Report) -> None:
    config, run_dir = _start(tmp_path, digits_dir, size, {"kind": "nan always", "steps": [14]})
    codes = ring.join_all(ring.start(config, run_dir, size, hook=HOOK))
    (replay,) = _replays(run_dir)
    assert codes == [79] * size and replay.outcome == "came_back", f"{codes} {replay}\n{_output(tmp_path)}"
    assert replay.from_step <= 12 and replay.from_step % 6 == 0, replay
    end = attempts.read_end(RunFolder(path=run_dir), 1)
    said = f"loss not finite at step {replay.again_step}, again in a replay from step {replay.from_step}"
    assert end is not None and (end.ending, end.reason) == ("diverged", said), end
    steps = [int(path.name.split("-")[1][1:]) for path in (run_dir / "ckpt").glob("*.safetensors")]
    assert max(steps) <= 14, f"steps {steps} are saved: nothing that is not finite may be"
    # Asked for again, by a user who thinks otherwise: it gets one more replay, and ends in the same way.
    codes = ring.join_all(ring.start(config, run_dir, size, hook=HOOK))
    assert codes == [79] * size and [known.outcome for known in _replays(run_dir)] == ["came_back"] * 2
    report(ROW, f"2 x NaN always, {size} ranks", "2 of 2 `diverged`, each after one replay")


def test_an_fp16_overflow_skips_steps_and_is_no_divergence(digits_dir: Path, tmp_path: Path, report: Report) -> None:
    config, run_dir = _start(tmp_path, digits_dir, 1, {"kind": "overflow", "steps": [9, 20]}, amp="fp16")
    ring.finish(config, run_dir, 1, hook=HOOK)
    skipped = [record.skipped_steps for record in journal.read(RunFolder(path=run_dir))]
    assert sum(skipped) > 0 and _replays(run_dir) == [], f"skipped {skipped}, replays {_replays(run_dir)}"
    report(ROW, "2 x fp16 overflow", f"{sum(skipped)} steps skipped by the scaler, no replay")


@pytest.mark.parametrize("size", SIZES)
def test_a_loss_spike_does_nothing(size: int, digits_dir: Path, tmp_path: Path, report: Report) -> None:
    config, run_dir = _start(tmp_path, digits_dir, size, {"kind": "spike", "steps": [3, 8, 16]})
    result = ring.finish(config, run_dir, size, hook=HOOK)
    assert _replays(run_dir) == [] and result.attempts == 1
    assert result.state_digest == ring.undisturbed(digits_dir, size).result.state_digest
    report(ROW, f"3 loss spikes x 1,000, {size} ranks", "nothing: equal digest, no replay")


PLACES = ("find_boundary 1", "write 1", "write_checkpoint 1", "drop_after 1", "_set_aside 1", "write 2")


@pytest.mark.parametrize("size", SIZES)
def test_killed_in_a_rewind_or_a_replay_it_is_still_one_replay(
    size: int, digits_dir: Path, tmp_path: Path, amount: Amount, report: Report
) -> None:
    places = [*PLACES, "in the replay"][-amount(1, 7 if size == 1 else 3, 7) :]
    for number, place in enumerate(places):
        folder = tmp_path / str(number)
        folder.mkdir()
        # An epoch's end that the attempt itself saved needs no copy; the beginning, before any epoch's end, does.
        step = 2 if place.startswith("write_checkpoint") else 14
        fault: dict[str, Any] = {"kind": "nan once", "steps": [step], "rank": size - 1, "die_at": place if place[-1].isdigit() else None}
        config, run_dir = _start(folder, digits_dir, size, fault)
        processes = ring.start(config, run_dir, size, hook=HOOK)
        if place == "in the replay":
            ring.wait_until(lambda: any(replay.is_rewound for replay in _replays(run_dir)))  # noqa: B023
            random.Random(number).choice(processes).kill()
        codes = ring.join_all(processes)
        assert -signal.SIGKILL in codes, f"{place}: {codes}\n{_output(folder)}"
        ring.finish(config, run_dir, size, hook=HOOK)
        if place not in ("find_boundary 1", "write 1"):  # before the record nothing is known of it, and it does not come back
            _assert_hardware_is_named(run_dir)
        ring.assert_same(run_dir, ring.undisturbed(digits_dir, size), f"killed at {place}")
    report(ROW, f"{len(places)} kills in a rewind or a replay, {size} ranks", "equal digests, one replay")


def test_a_divergence_that_comes_back_in_the_next_attempt_ends_it(digits_dir: Path, tmp_path: Path) -> None:
    config, run_dir = _start(tmp_path, digits_dir, 1, {"kind": "nan always", "steps": [14], "die_at": "write 2"})
    assert ring.join_all(ring.start(config, run_dir, 1, hook=HOOK)) == [-9]
    assert ring.join_all(ring.start(config, run_dir, 1, hook=HOOK)) == [79], _output(tmp_path)
    assert [replay.outcome for replay in _replays(run_dir)] == ["came_back"], _replays(run_dir)


def test_bad_hardware_gets_three_replays_and_no_more(digits_dir: Path, tmp_path: Path) -> None:
    far = MARGIN_STEPS + 12
    config, run_dir = _start(tmp_path, digits_dir, 1, {"kind": "nan once", "steps": [2 + far * n for n in range(4)]}, epochs=20)
    assert ring.join_all(ring.start(config, run_dir, 1, hook=HOOK)) == [79], _output(tmp_path)
    end = attempts.read_end(RunFolder(path=run_dir), 1)
    assert [replay.outcome for replay in _replays(run_dir)] == ["gone"] * 3, _replays(run_dir)
    assert end is not None and "3 times before" in str(end.reason) and socket.gethostname() in str(end.reason), end


@pytest.mark.parametrize("size", SIZES)
def test_a_stop_amid_a_divergence_is_a_stop_on_every_rank(size: int, digits_dir: Path, tmp_path: Path) -> None:
    fault = {"kind": "nan once", "steps": [14], "stop_at": 16, "rank": size - 1}
    config, run_dir = _start(tmp_path, digits_dir, size, fault, checkpoint_every_s=3600)
    codes = ring.join_all(ring.start(config, run_dir, size, hook=HOOK))
    assert codes == [75] * size and "which is not saved" in _output(tmp_path), f"{codes}\n{_output(tmp_path)}"
    assert TrainResult.read(RunFolder(path=run_dir)) is None
    ring.finish(config, run_dir, size)
    ring.assert_same(run_dir, ring.undisturbed(digits_dir, size), "stopped with a state that is not finite")


def test_a_stop_amid_a_divergence_with_nothing_durable_begins_again(digits_dir: Path, tmp_path: Path) -> None:
    config, run_dir = _start(tmp_path, digits_dir, 1, {"kind": "nan once", "steps": [0], "stop_at": 1}, checkpoint_every_s=3600)
    assert ring.join_all(ring.start(config, run_dir, 1, hook=HOOK)) == [75], _output(tmp_path)
    end = attempts.read_end(RunFolder(path=run_dir), 1)
    assert end is not None and str(end.reason).endswith("; nothing is durable yet"), end
    ring.finish(config, run_dir, 1)
    ring.assert_same(run_dir, ring.undisturbed(digits_dir, 1), "stopped with a state that is not finite, before any save")


def test_numbers_of_the_abandoned_branch_do_not_survive(digits_dir: Path, tmp_path: Path) -> None:
    # Nothing is saved but the best: the way back is long, and epochs lie on it.
    config, run_dir = _start(tmp_path, digits_dir, 1, {"kind": "nan once", "steps": [22]}, checkpoint_every_s=3600)
    ring.finish(config, run_dir, 1, hook=HOOK)
    (replay,) = _replays(run_dir)
    lines = [line["step"] for line in ring.journal_lines(run_dir)]
    assert lines == [*range(6, replay.from_step + 1, 6), *range(max(6, replay.from_step), 31, 6)], f"from {replay.from_step}: {lines}"
    ring.assert_same(run_dir, ring.undisturbed(digits_dir, 1), "epochs abandoned")


def test_a_replay_from_before_an_older_result_is_no_damage(digits_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fault = {"kind": "nan once", "steps": [30], "stop_at": 25}
    config, run_dir = _start(tmp_path, digits_dir, 1, fault)
    wanted = yaml.safe_load(config.read_text())
    wanted["optim"]["schedule_epochs"] = 9
    config.write_text(yaml.safe_dump(wanted))
    ring.finish(config, run_dir, 1)
    wanted["train"]["epochs"] = 6
    config.write_text(yaml.safe_dump(wanted))
    # The first step beyond the old end diverges, so the old end itself is in doubt; the replay is stopped before it is there again.
    assert ring.join_all(ring.start(config, run_dir, 1, hook=HOOK)) == [75], _output(tmp_path)
    assert [replay.outcome for replay in _replays(run_dir)] == [None] and len(journal.read(RunFolder(path=run_dir))) < 5
    assert checkpoint(["verify", str(run_dir)]) == 0, capsys.readouterr().out
    result = ring.finish(config, run_dir, 1)
    assert result.epochs == 6 and checkpoint(["verify", str(run_dir)]) == 0, capsys.readouterr().out
