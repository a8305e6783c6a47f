"""Real training over two nodes, which are two supervisors on this machine: the same bits whatever was killed, and stops that save."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ranks as ring
import yaml

from seresnet.run_folder import CheckpointName, RunFolder, RunRecord, TrainResult
from tests.hpc.node_scene import Scene, is_gone, wait_until

COMMAND = (sys.executable, "-m", "seresnet.train", "--run-dir", "{run_dir}")

Open = Callable[..., Scene]


@pytest.fixture
def scene(tmp_path: Path, digits_dir: Path) -> Iterator[Open]:
    opened: list[Scene] = []

    def _open(size: int, **train: Any) -> Scene:
        config = yaml.safe_load(ring.tiny_config(tmp_path, digits_dir, size, **train).read_text())
        opened.append(Scene(tmp_path, "", ranks=size, command=COMMAND, **config))
        return opened[-1]

    yield _open
    for each in opened:
        each.close()


def _digest(folder: Path) -> str:
    result = TrainResult.read(RunFolder(path=folder))
    assert result is not None, f"{folder}: no result"
    return result.state_digest


def _newest_step(two: Scene) -> int:
    names = [CheckpointName.parse(path.name) for path in two.sweep.path.glob("run0/ckpt/*.safetensors")]
    return max((name.step for name in names if name), default=0)


def _wait_for_step(two: Scene, step: int) -> None:
    wait_until(lambda: _newest_step(two) >= step or two.supervisors[0].poll() is not None, 90, f"step {step}\n{two.say()}")


def _rank_pids(two: Scene, generation: int) -> list[int]:
    """Of all ranks: children of the supervisors in whose environment the run's generation stands."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        argv = (path.parent / "cmdline").read_bytes().split(b"\0") if f"SERESNET_GENERATION={generation}".encode() in words else []
        if str(two.sweep.path.resolve() / "run0").encode() in argv:
            rank = next(word for word in words if word.startswith(b"RANK=")).removeprefix(b"RANK=")
            found.append((int(rank), int(path.parent.name)))
    return [pid for _, pid in sorted(found)]


@pytest.mark.parametrize("size", [2, 4])
def test_two_nodes_give_the_bits_of_one_on_the_cpu(scene: Open, digits_dir: Path, tmp_path: Path, size: int) -> None:
    # Tier T1 promises less, ranks a node are part of it; gloo's all-reduce on the CPU knows no nodes.
    alone = tmp_path / "alone"
    alone.mkdir()
    ring.finish(ring.tiny_config(alone, digits_dir, size), alone / "run", size)
    two = scene(size).start()
    assert two.codes(120) == [0, 0], two.say()
    assert _digest(two.sweep.path / "run0") == _digest(alone / "run")
    pinned = RunRecord.read(RunFolder(path=two.sweep.path / "run0")).pinned
    assert pinned is not None and (pinned["world_size"], pinned["ranks_per_node"]) == (size, size // 2)


def test_whatever_is_killed_on_whichever_node_the_bits_are_the_same(scene: Open, digits_dir: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    ring.finish(ring.tiny_config(alone, digits_dir, 2, epochs=20), alone / "run", 2)
    two = scene(2, epochs=20).start()

    _wait_for_step(two, 10)
    victims = _rank_pids(two, 1)
    os.kill(victims[1], signal.SIGKILL)  # a rank of node 1
    assert wait_until(lambda: all(map(is_gone, victims)), 15, "both ranks are gone") < 5
    _wait_for_step(two, _newest_step(two) + 10)
    two.supervisors[1].kill()
    assert two.codes(60) == [75, -9], two.say()

    two.start(restarts=1)
    _wait_for_step(two, _newest_step(two) + 10)
    two.supervisors[0].kill()
    assert two.codes(60) == [-9, 75], two.say()

    two.start(restarts=2)
    _wait_for_step(two, _newest_step(two) + 10)
    two.supervisors[1].send_signal(signal.SIGTERM)
    assert two.codes(60) == [75, 75], two.say()
    two.start(restarts=3)
    assert two.codes(120) == [0, 0], two.say()
    assert two.endings() == ["killed", "stopped", "node_failed", "stopped", "finished"], two.say()
    assert "rank 1 on node 1 (n2)" in two.reasons()[0] and "state saved" in two.reasons()[3]
    assert _digest(two.sweep.path / "run0") == _digest(alone / "run")


def test_a_stop_to_one_node_while_ranks_start_ends_all_of_them_soon(scene: Open) -> None:
    two = scene(2).start()
    wait_until(lambda: len(_rank_pids(two, 1)) == 2, 30, f"both ranks are there\n{two.say()}")
    pids, began = _rank_pids(two, 1), time.monotonic()
    two.supervisors[1].send_signal(signal.SIGTERM)
    assert two.codes(40) == [75, 75], two.say()
    assert time.monotonic() - began < 13 and all(map(is_gone, pids))
    assert two.endings() == ["stopped"], two.reasons()
