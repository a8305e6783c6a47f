"""A download is resumed, checked, and named only when it is right; without a network the message says what to do elsewhere."""

import hashlib
import http.server
import socket
import threading

import pytest

from seresnet.data_progress import silent
from seresnet.download import fetch
from seresnet.errors import DataError

CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT under any path; break_after cuts the first so many answers short."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges_work, self.cuts, self.status = CONTENT, True, [], None
        self.asked = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/file.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges_work else 0
        if server.status or start >= len(server.content):
            self.send_response(server.status or 416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)

    def log_message(self, *_):
        return


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def get(server, target, md5=MD5):
    fetch(server.url, target, md5, silent, pause_s=0.01)


def test_file_arrives_whole_and_alone(server, tmp_path):
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_part_of_an_earlier_try_is_continued(server, tmp_path):
    (tmp_path / "f.part").write_bytes(CONTENT[:300_000])
    get(server, tmp_path / "f")
    assert server.asked == ["bytes=300000-"] and (tmp_path / "f").read_bytes() == CONTENT


def test_server_that_knows_no_ranges_starts_the_file_again(server, tmp_path):
    server.ranges_work = False
    (tmp_path / "f.part").write_bytes(b"x" * 300_000)
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_broken_connections_are_continued_where_they_broke(server, tmp_path):
    server.cuts = [100_000, 200_000]
    get(server, tmp_path / "f")
    assert server.asked == [None, "bytes=100000-", "bytes=300000-"] and (tmp_path / "f").read_bytes() == CONTENT


def test_connection_that_keeps_breaking_keeps_what_came(server, tmp_path):
    server.cuts = [1000, 1000, 1000]
    with pytest.raises(DataError, match="curl -fL"):
        get(server, tmp_path / "f")
    assert (tmp_path / "f.part").read_bytes() == CONTENT[:3000] and not (tmp_path / "f").exists()


def test_part_that_is_already_whole_is_taken(server, tmp_path):
    (tmp_path / "f.part").write_bytes(CONTENT)
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_part_that_is_longer_than_the_file_is_fetched_again(server, tmp_path):
    (tmp_path / "f.part").write_bytes(CONTENT + b"more")
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_wrong_checksum_is_refused_and_set_aside(server, tmp_path):
    server.content = CONTENT[:-1] + b"\0"
    found = hashlib.md5(server.content).hexdigest()
    with pytest.raises(DataError, match=f"MD5 is {found}, the published one is {MD5}. Kept as .*f.bad"):
        get(server, tmp_path / "f")
    assert [path.name for path in tmp_path.iterdir()] == ["f.bad"]
    server.content = CONTENT
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_refused_connection_names_the_command_and_where_the_file_goes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/file.bin"
        with pytest.raises(DataError) as caught:
            fetch(url, tmp_path / "my file.tar.gz", MD5, silent, pause_s=0.01)
    assert f"\n  curl -fL -C - -o 'my file.tar.gz' {url}\n" in str(caught.value)
    assert f"copy the file to {tmp_path}/my file.tar.gz, or leave it anywhere and set data.path" in str(caught.value)


def test_missing_page_is_asked_for_once(server, tmp_path):
    server.status = 404
    with pytest.raises(DataError, match="Not Found"):
        get(server, tmp_path / "f")
    assert len(server.asked) == 1


def test_addresses_other_than_http_are_refused(tmp_path):
    with pytest.raises(DataError, match="not an http or https address"):
        fetch("file:///etc/passwd", tmp_path / "f", MD5, silent)
