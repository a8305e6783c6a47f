"""How the supervisors of one task on several nodes find each other and talk: a file with addresses and a token, then TCP, a JSON a line.

What they tell each other is hpc.nodes' business. Nothing here starts a thread, or waits longer than it is told to. One invariant:
nobody is listened to before they have proved that they know the token, and the token itself never crosses the network.
"""

import contextlib
import hmac
import json
import logging
import os
import secrets
import socket
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seresnet.durable import fsync_folder, parse_json

log = logging.getLogger("hpc.supervisor")

Message = dict[str, Any]

#: A peer that takes no bytes for so long, or a host that answers no probe, is gone.
SEND_LIMIT_S = 5.0
KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPALIVE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
HANDSHAKE_LIMIT_S = 5.0
MAX_LINE = 1 << 20
#: How often a folder is made to show what other machines wrote, see find.
POKE_S = 2.0


def listen() -> socket.socket:
    """A listening socket on a port that the kernel chose, for every address of this machine. No other process can have that port."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # IPv6 may be compiled in and switched off
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def port_of(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """What node 0 publishes: where it listens, and the secret of this attempt of this task."""

    addresses: tuple[str, ...]
    port: int
    token: str

    def publish(self, path: Path) -> None:
        """Write it for this user alone, whole when it appears."""
        path.parent.mkdir(exist_ok=True)
        temp = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
        handle = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            json.dump(asdict(self), file)
            file.flush()
            os.fsync(file.fileno())
        temp.rename(path)
        fsync_folder(path.parent)


def find(path: Path) -> Meeting | None:
    """The meeting that path names, or None. Looks by listing: on NFS a name that was once not there stays so for a minute."""
    try:
        if path.name not in os.listdir(path.parent):  # noqa: PTH208 - names only
            return None
        with open(path) as file:
            facts = os.fstat(file.fileno())
            if facts.st_mode & 0o077 or facts.st_uid != os.getuid():
                log.error("meeting=%s is not this user's alone: ignored", path)
                return None
            value = json.load(file)
        return Meeting(addresses=tuple(map(str, value["addresses"])), port=int(value["port"]), token=str(value["token"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def poke(folder: Path) -> None:
    """Change a folder, so that a network file system drops what it remembers of it."""
    with contextlib.suppress(OSError):
        temp = folder / f".poke-{secrets.token_hex(8)}"
        os.close(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        temp.unlink()


def addresses(name: str) -> tuple[str, ...]:
    """Names and numbers under which other nodes may reach this one, the most telling first; loopback last, for nodes on one host."""
    found = [name, socket.gethostname(), *_outward(), *_of_interfaces()]
    return tuple(dict.fromkeys([*(each for each in found if each and not each.startswith("127.")), "127.0.0.1"]))


def _outward() -> Iterator[str]:
    """The address that a packet to elsewhere would carry; none is sent, and 192.0.2.1 (RFC 5737) is nobody."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        yield probe.getsockname()[0]


def _of_interfaces() -> Iterator[str]:
    if not sys.platform.startswith("linux"):
        return
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # an interface without an IPv4 address
                answer = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR, netdevice(7)
                yield socket.inet_ntoa(answer[20:24])


class Wire:
    """One connection: messages in, messages out. Whatever goes wrong makes it lost, and a lost one stays so."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket, self._buffer, self.is_lost = connected, b"", False
        self._unread: list[Message] = []
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():  # a machine without power says no goodbye
            if hasattr(socket, option):
                connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def send(self, **message: Any) -> None:
        """Send, or be lost."""
        if self.is_lost:
            return
        try:
            self._socket.settimeout(SEND_LIMIT_S)
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            self._lose(error)

    def receive(self, wait_s: float = 0.0) -> list[Message]:
        """What has come; waits for the first byte of it at most wait_s."""
        messages, self._unread = self._unread, []
        while not self.is_lost:
            try:
                self._socket.settimeout(0.0 if messages else wait_s)
                chunk = self._socket.recv(65536)
            except (BlockingIOError, TimeoutError):
                break
            except OSError as error:
                self._lose(error)
                break
            wait_s, self._buffer = 0.0, self._buffer + chunk
            if not chunk or len(self._buffer) > MAX_LINE:
                self._lose("closed" if not chunk else "too long a line")
        *lines, self._buffer = self._buffer.split(b"\n")
        return messages + [message for line in lines if (message := self._parsed(line)) is not None]

    def receive_one(self, wait_s: float) -> Message | None:
        """The next message; what came with it stays for receive."""
        messages = self.receive(wait_s)
        self._unread = messages[1:]
        return messages[0] if messages else None

    def close(self) -> None:
        self.is_lost = True
        self._socket.close()

    def _parsed(self, line: bytes) -> Message | None:
        with contextlib.suppress(ValueError):
            if isinstance(message := parse_json(line), dict):
                return message
        self._lose(f"not a message: {line[:80]!r}")
        return None

    def _lose(self, why: object) -> None:
        log.info("connection_lost why=%s", why)
        self.close()


def _proof(token: str, role: str, nonce: object, node: object) -> str:
    return hmac.digest(token.encode(), f"{role} {nonce} {node}".encode(), "sha256").hex()


@dataclass(kw_only=True)
class _Stranger:
    wire: Wire
    nonce: str
    leaves_at: float


class Door:
    """Where node 0 lets the others in."""

    def __init__(self) -> None:
        self._listener, self.token = listen(), secrets.token_hex(32)
        self._listener.setblocking(False)
        self._strangers: list[_Stranger] = []

    @property
    def port(self) -> int:
        return port_of(self._listener)

    def admit(self) -> list[tuple[Message, Wire]]:
        """Who has come in and proved to be of this task: their first message and their connection. Never waits."""
        with contextlib.suppress(OSError):
            while True:
                self._greet(self._listener.accept()[0])
        let_in, still = [], []
        for stranger in self._strangers:
            messages = stranger.wire.receive()
            if messages and self._is_known(stranger, messages[0]):
                let_in.append((messages[0], stranger.wire))
            elif messages or stranger.wire.is_lost or time.monotonic() > stranger.leaves_at:
                stranger.wire.close()
            else:
                still.append(stranger)
        self._strangers = still
        return let_in

    def close(self) -> None:
        self._listener.close()
        for stranger in self._strangers:
            stranger.wire.close()

    def _greet(self, connected: socket.socket) -> None:
        wire, nonce = Wire(connected), secrets.token_hex(16)
        wire.send(nonce=nonce)
        self._strangers.append(_Stranger(wire=wire, nonce=nonce, leaves_at=time.monotonic() + HANDSHAKE_LIMIT_S))

    def _is_known(self, stranger: _Stranger, hello: Message) -> bool:
        wanted = _proof(self.token, "follower", stranger.nonce, hello.get("node"))
        if not hmac.compare_digest(wanted, str(hello.get("proof"))):
            log.error("stranger_refused")
            return False
        stranger.wire.send(proof=_proof(self.token, "leader", hello.get("nonce"), hello.get("node")))
        return not stranger.wire.is_lost


def connect(meeting: Meeting, node: int, name: str) -> tuple[str, Wire] | None:
    """Reach node 0 under the first of its addresses that works; that address and the connection, or None."""
    for address in meeting.addresses:
        try:
            wire = Wire(socket.create_connection((address, meeting.port), timeout=HANDSHAKE_LIMIT_S))
        except OSError as error:
            log.info("address=%s port=%d error=%s", address, meeting.port, error)
            continue
        if _shake_hands(wire, meeting.token, node, name):
            return address, wire
        wire.close()
    return None


def _shake_hands(wire: Wire, token: str, node: int, name: str) -> bool:
    greeting, nonce = wire.receive_one(HANDSHAKE_LIMIT_S), secrets.token_hex(16)
    if greeting is None:
        return False
    wire.send(node=node, name=name, nonce=nonce, proof=_proof(token, "follower", greeting.get("nonce"), node))
    answer = wire.receive_one(HANDSHAKE_LIMIT_S)
    return answer is not None and hmac.compare_digest(_proof(token, "leader", nonce, node), str(answer.get("proof")))
