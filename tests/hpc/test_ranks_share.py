"""The ranks of one node of a run on several: their numbers, their socket, and what they do when something happens elsewhere."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpc import ranks
from hpc.ranks import Outcome, RankGroup, Share

_SAY = "import os; print(*(os.environ.get(name) for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'SERESNET_STORE_FD', 'MEET')))"


@pytest.fixture
def groups() -> Iterator[list[RankGroup]]:
    started: list[RankGroup] = []
    yield started
    for group in started:
        group.close()


def _group(groups: list[RankGroup], tmp_path: Path, code: str, size: int, **share: object) -> RankGroup:
    told = Share(**{"first_rank": 0, "world_size": 4, "meeting": {"MEET": "here"}, **share})  # type: ignore[arg-type]
    groups.append(RankGroup([sys.executable, "-c", code], size, env={}, cwd=tmp_path, log=tmp_path / "log.txt", share=told))
    return groups[-1]


def _outcome(group: RankGroup, **told: object) -> tuple[Outcome, float]:
    began = time.monotonic()
    while (outcome := group.poll(**told)) is None:  # type: ignore[arg-type]
        assert time.monotonic() - began < 20
        time.sleep(0.02)
    return outcome, time.monotonic() - began


def test_ranks_of_the_second_node_are_numbered_from_its_first(groups: list[RankGroup], tmp_path: Path) -> None:
    outcome, _ = _outcome(_group(groups, tmp_path, _SAY, 2, first_rank=2))
    assert (outcome.statuses, outcome.first_rank) == ((0, 0), 2)
    assert sorted((tmp_path / "log.txt").read_text().splitlines()) == ["2 0 4 None here", "3 1 4 None here"]


def test_ranks_that_did_start_do_not_outlive_one_that_could_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start_process = ranks.start_process

    def one_only(*args: Any, **more: Any) -> "subprocess.Popen[bytes]":
        if started:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(start_process(*args, **more))
        return started[0]

    monkeypatch.setattr(ranks, "start_process", one_only)
    with pytest.raises(BlockingIOError):
        RankGroup([sys.executable, "-c", "import time; time.sleep(60)"], 2, env={}, cwd=tmp_path, log=tmp_path / "log.txt")
    assert started[0].returncode == -9


def test_only_rank_0_has_the_socket(groups: list[RankGroup], tmp_path: Path) -> None:
    code = f"import socket; {_SAY}; fd = os.environ.get('SERESNET_STORE_FD')\nif fd: print(socket.socket(fileno=int(fd)).getsockname())"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        name, fd = listener.getsockname(), listener.fileno()
        _outcome(_group(groups, tmp_path, code, 2, listen_fd=fd))
    assert sorted((tmp_path / "log.txt").read_text().splitlines()) == sorted([str(name), f"0 0 4 {fd} here", "1 1 4 None here"])


@pytest.mark.parametrize(("elsewhere", "limit"), [("lost", None), ("failed", "BEREAVED_LIMIT_S"), ("left", "PARTING_LIMIT_S")])
def test_what_happens_elsewhere_ends_the_ranks_here_in_time(
    groups: list[RankGroup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: str, limit: str | None
) -> None:
    for name in ("BEREAVED_LIMIT_S", "PARTING_LIMIT_S"):
        monkeypatch.setattr(ranks, name, 1.0 if name == limit else 30.0)
    group = _group(groups, tmp_path, "import time; time.sleep(60)", 2)
    outcome, seconds = _outcome(group, elsewhere=elsewhere)
    assert (outcome.statuses, outcome.culprit, outcome.was_killed_by_us) == ((-9, -9), None, True)
    assert (1.0 if limit else 0.0) <= seconds < (3.0 if limit else 1.5)


def test_the_culprit_is_named_by_its_number_in_the_whole_run(groups: list[RankGroup], tmp_path: Path) -> None:
    code = "import os; os._exit(80 if os.environ['RANK'] == '3' else 1)"
    group = _group(groups, tmp_path, code, 2, first_rank=2)
    outcome, _ = _outcome(group)
    assert (outcome.culprit, group.look()) == (3, "failed")


@pytest.mark.parametrize(
    ("statuses", "culprit"),
    [
        ({0: 76, 1: 1}, 0),  # a hung rank's peer loses its connection when the watchdog ends it
        ({1: 1, 0: 76}, 0),  # whichever was seen first
        ({0: 76, 1: -11}, 1),
        ({0: 1, 1: 80}, 1),
    ],
)
def test_of_ranks_that_failed_together_the_one_that_explains_the_others_is_named(statuses: dict[int, int], culprit: int) -> None:
    assert ranks.culprit_of(list(statuses), statuses) == culprit
