"""How supervisors of several nodes find each other: who is let in, what is read, and that a lost connection is noticed."""

import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hpc import node_channel
from hpc.node_channel import Door, Meeting, Wire


@pytest.fixture
def door() -> Iterator[Door]:
    opened = Door()
    yield opened
    opened.close()


def _meeting(door: Door, token: str | None = None, *addresses: str) -> Meeting:
    return Meeting(addresses=addresses or ("127.0.0.1",), port=door.port, token=token or door.token)


def _join(door: Door, meeting: Meeting) -> tuple[tuple[str, Wire] | None, list[Wire]]:
    """Both ends of a connection, or none; the door is looked at until the other side is done."""
    let_in: list[Wire] = []
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(node_channel.connect, meeting, 1, "n2")
        while not asked.done():
            let_in += [wire for _, wire in door.admit()]
            time.sleep(0.01)
    return asked.result(), let_in


def test_who_knows_the_token_is_let_in_and_both_hear_each_other(door: Door) -> None:
    found, (leader,) = _join(door, _meeting(door))
    assert found is not None and found[0] == "127.0.0.1"
    leader.send(do="start", run="a")
    leader.send(do="stop")
    found[1].send(said="end", statuses=[0, -9])
    assert [*found[1].receive(2), *found[1].receive(0.2)] == [{"do": "start", "run": "a"}, {"do": "stop"}]
    assert leader.receive(2) == [{"said": "end", "statuses": [0, -9]}]


def test_nobody_with_another_token_is_let_in(door: Door) -> None:
    assert _join(door, _meeting(door, "0" * 64)) == (None, [])


def test_somebody_who_does_not_know_the_token_is_no_node_0(monkeypatch: pytest.MonkeyPatch) -> None:
    impostor = Door()
    monkeypatch.setattr(Door, "_is_known", lambda self, stranger, hello: stranger.wire.send(proof="0" * 64) or True)
    found, _ = _join(impostor, _meeting(impostor, "f" * 64))
    impostor.close()
    assert found is None


def test_the_token_does_not_cross_the_network(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    send = Wire.send
    monkeypatch.setattr(Wire, "send", lambda self, **message: (sent.append(json.dumps(message)), send(self, **message))[1])
    assert _join(door, _meeting(door))[0] is not None
    assert len(sent) == 3 and not any(door.token in text for text in sent)


def test_one_who_connects_and_says_nothing_keeps_nobody_waiting(door: Door) -> None:
    with socket.create_connection(("127.0.0.1", door.port)):
        began = time.monotonic()
        found, let_in = _join(door, _meeting(door))
        assert found is not None and len(let_in) == 1 and time.monotonic() - began < 2


def test_addresses_that_lead_nowhere_are_passed_over(door: Door) -> None:
    found, _ = _join(door, _meeting(door, None, "no-such-host.invalid", "127.0.0.1"))
    assert found is not None and found[0] == "127.0.0.1"


def test_a_connection_that_breaks_is_lost_and_what_came_before_is_heard(door: Door) -> None:
    found, (leader,) = _join(door, _meeting(door))
    assert found is not None
    found[1].send(said="end")
    found[1].close()
    assert (leader.receive(2), leader.is_lost) == ([{"said": "end"}], True)
    leader.send(do="over")  # and nothing is raised


@pytest.mark.parametrize("line", [b"nonsense\n", b"[1]\n", b"x" * (node_channel.MAX_LINE + 1)])
def test_what_is_no_message_loses_the_connection(line: bytes) -> None:
    ours, theirs = socket.socketpair()
    wire = Wire.__new__(Wire)
    wire._socket, wire._buffer, wire._unread, wire.is_lost = ours, b"", [], False
    with ThreadPoolExecutor(1) as pool:
        pool.submit(theirs.sendall, line)
        while not wire.is_lost:
            assert wire.receive(0.1) == []
    theirs.close()


def test_what_is_published_is_found_and_is_for_its_user_alone(tmp_path: Path) -> None:
    path, meeting = tmp_path / "logs" / "m.json", Meeting(addresses=("a", "b"), port=7, token="t")
    assert node_channel.find(path) is None
    meeting.publish(path)
    assert node_channel.find(path) == meeting
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and os.listdir(path.parent) == ["m.json"]  # noqa: PTH208
    path.chmod(0o644)
    assert node_channel.find(path) is None


def test_half_a_meeting_is_none(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.touch(0o600)
    for text in ("", "{", '{"port": 1}', '{"addresses": 3, "port": 1, "token": "x"}'):
        path.write_text(text)
        assert node_channel.find(path) is None, text


def test_names_and_numbers_of_this_machine_come_before_loopback() -> None:
    found = node_channel.addresses("n1")
    assert (found[0], found[-1]) == ("n1", "127.0.0.1") and socket.gethostname() in found and len(set(found)) == len(found)


def test_ports_are_the_kernels_and_no_two_are_equal() -> None:
    listeners = [node_channel.listen() for _ in range(50)]
    assert len({node_channel.port_of(each) for each in listeners}) == 50
    for each in listeners:
        each.close()
