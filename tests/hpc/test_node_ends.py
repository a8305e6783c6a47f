"""Whose fault it was: the ends of several nodes put together."""

from pathlib import Path

import pytest

from hpc import node_ends
from hpc.node_ends import NodeEnd, combine
from hpc.ranks import Outcome
from seresnet.durable import write_json_durably
from seresnet.run_folder import RunFolder

LOST_PEER = "RuntimeError: [gloo/transport/tcp/pair.cc:561] Connection closed by peer [10.0.0.2]:703"


def _end(node: int, status: int = 0, reason: str = "", ending: str | None = None, **more: object) -> NodeEnd:
    """The end of a node with one rank."""
    failed = status not in (0, 75)
    ending = ending or ("killed" if status == -9 else "crashed") if failed or ending else None
    values = {"culprit": node if failed else None, "code": status if status >= 0 else 128 - status, "reason": reason, "was_killed": False}
    return NodeEnd(node=node, name=f"n{node + 1}", first_rank=node, statuses=(status,), ending=ending, **{**values, **more})  # type: ignore[arg-type]


def _said(outcome: Outcome) -> tuple[str, str]:
    assert outcome.description is not None
    return outcome.description.ending, outcome.description.reason


def test_a_rank_that_lost_its_peer_is_not_blamed_though_it_was_seen_first() -> None:
    outcome = combine([_end(0, 1, LOST_PEER), _end(1, 1, "ValueError: of its own")], [], None)
    assert _said(outcome) == ("crashed", "rank 1 on node 1 (n2): ValueError: of its own")
    assert outcome.statuses == (1, 1)


def test_of_two_alike_the_one_seen_first_is_named() -> None:
    for first, second in ((0, 1), (1, 0)):
        assert f"on node {first} " in _said(combine([_end(first, 1, "a"), _end(second, 1, "b")], [], None))[1]


@pytest.mark.parametrize(
    ("strong", "weak"),
    [
        (_end(1, 78, "bad path", "user_error"), _end(0, -9, "rank 0 was ended by SIGKILL")),
        (_end(1, 80, "of memory", "out_of_memory"), _end(0, 1, "ValueError")),
        (_end(1, -9, "rank 1 was ended by SIGKILL"), _end(0, 1, "ValueError")),
        (_end(1, 1, "ValueError"), _end(0, 76, "no step for 120 s", "hung")),
        (_end(1, 76, "no step for 120 s", "hung"), _end(0, 1, LOST_PEER)),
        (_end(1, -9, "rank 1 said nothing", "hung", culprit=None, code=76), _end(0, 1, LOST_PEER)),
    ],
)
def test_what_explains_more_wins(strong: NodeEnd, weak: NodeEnd) -> None:
    ending, reason = _said(combine([weak, strong], [], None))
    assert (ending, "node 1 (n2)" in reason) == (strong.ending, True), reason


def test_a_stop_that_reached_one_node_first_is_a_stop() -> None:
    outcome = combine([_end(0, 1, LOST_PEER), _end(1, 75)], [], None)
    assert (outcome.description, outcome.culprit) == (None, None)
    assert combine([_end(0, 1, "ValueError"), _end(1, 75)], [], "SIGTERM").description is not None


def test_a_lost_node_is_said_and_what_else_is_known_too() -> None:
    outcome = combine([_end(0, -9, "rank 0 was ended by SIGKILL")], ["node 1 (n2) is lost"], "node 1 (n2) is lost")
    assert _said(outcome) == ("stopped", "node 1 (n2) is lost; rank 0 on node 0 (n1): rank 0 was ended by SIGKILL")
    assert _said(combine([_end(0, 1, LOST_PEER)], ["node 1 (n2) is lost"], None)) == ("stopped", "node 1 (n2) is lost")


def test_without_a_failure_the_ranks_statuses_speak() -> None:
    outcome = combine([_end(1), _end(0)], [], None)
    assert outcome == Outcome(statuses=(0, 0), culprit=None, stop_reason=None, was_killed_by_us=False)


def test_the_record_of_a_node_says_what_its_ranks_wrote(tmp_path: Path) -> None:
    folder = RunFolder(path=tmp_path)
    folder.create()
    write_json_durably(folder.rank_exit(3, 5), {"code": 80, "ending": "out_of_memory", "reason": "CUDA out of memory", "rank": 5})
    node_ends.log_of(folder, 2).write_text("nothing of interest\n")
    outcome = Outcome(statuses=(-9, 80), culprit=5, stop_reason=None, was_killed_by_us=True, first_rank=4)
    end = node_ends.judge_node(folder, 3, outcome, 2, "n3")
    assert (end.ending, end.reason, end.culprit, end.was_killed) == ("out_of_memory", "CUDA out of memory", 5, True)
    end.write(folder, 3)
    assert node_ends.read(folder, 3, 2) == end and node_ends.read(folder, 3, 1) is None
    assert (folder.attempts / "000003.node2.json").exists()


def test_a_silent_rank_is_described_by_the_log_of_its_node(tmp_path: Path) -> None:
    folder = RunFolder(path=tmp_path)
    folder.create()
    folder.log.write_text("of node 0\n")
    node_ends.log_of(folder, 1).write_text("of node 1\n")
    outcome = Outcome(statuses=(-11,), culprit=1, stop_reason=None, was_killed_by_us=False, first_rank=1)
    reason = node_ends.judge_node(folder, 1, outcome, 1, "n2").reason
    assert reason == "rank 1 was ended by SIGSEGV; the log's last line: of node 1"
