"""Whether W&B can be reached: a server that answers, a key that is for it."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from hpc import mirror_process


@contextmanager
def server(status: int | None) -> Iterator[str]:
    """A server on loopback that answers with status, or with None accepts and stays silent."""
    if status is None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            yield f"http://127.0.0.1:{silent.getsockname()[1]}"
        return

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.mark.parametrize(("status", "expected"), [(200, True), (401, True), (404, True), (503, False), (None, False)])
def test_a_server_counts_only_if_it_answers_in_time_and_not_with_its_own_error(status: int | None, expected: bool) -> None:
    with server(status) as url:
        began = time.monotonic()
        assert mirror_process.answers(url, within_s=0.5) is expected
        assert time.monotonic() - began < 2


def test_mode_is_online_only_with_a_key_and_an_answer() -> None:
    with server(200) as url:
        there = {"WANDB_BASE_URL": url}
        assert mirror_process.choose_mode("auto", there)[0] == "offline"
        assert mirror_process.choose_mode("auto", there | {"WANDB_API_KEY": "k"})[0] == "online"
        assert mirror_process.choose_mode("offline", there | {"WANDB_API_KEY": "k"})[0] == "offline"
    mode, why = mirror_process.choose_mode("online", there | {"WANDB_API_KEY": "k"})
    assert mode == "offline" and "does not answer" in why


def test_key_is_found_in_netrc_for_the_servers_host_only(tmp_path: Path) -> None:
    file = tmp_path / "netrc"
    file.write_text("machine api.wandb.ai login user password secret\n")
    file.chmod(0o600)
    assert mirror_process.has_key({"NETRC": str(file)}, "https://api.wandb.ai")
    assert not mirror_process.has_key({"NETRC": str(file)}, "https://wandb.example.org")
    file.write_text("machine\n???")
    assert not mirror_process.has_key({"NETRC": str(file)}, "https://api.wandb.ai")
