"""A small W&B server on 127.0.0.1 for tests with the real client: it keeps what it is sent, and can misbehave in known ways.

Knows UpsertBucket, RunResumeStatus and file_stream; every other question gets an error, with which the client lives. As a process:
`python wandb_stub.py --port-file FILE`; then GET /_stub is everything it holds, POST /_stub sets its behaviour. One invariant: a row
is a fault unless its `_step` is new to its run, or it is sent again to the place where it already stands.
"""

import argparse
import contextlib
import gzip
import json
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HISTORY, SUMMARY = "wandb-history.jsonl", "wandb-summary.json"


@dataclass
class ServerRun:
    """One run as the server has it."""

    id: str
    name: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    lines: dict[int, str] = field(default_factory=dict)  # offset -> a history line as sent
    summary: dict[str, Any] = field(default_factory=dict)
    exits: list[int] = field(default_factory=list)
    preempting: int = 0
    upserts: int = 0
    files: list[str] = field(default_factory=list)  # names in file_stream other than history and summary

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(self.lines[offset]) for offset in sorted(self.lines)]

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.rows]


@dataclass
class Books:
    """Everything that a stub was told."""

    runs: dict[str, ServerRun] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)  # "POST /graphql UpsertBucket 200"
    bodies: list[str] = field(default_factory=list)  # with their request lines and headers, but the key
    deleted: list[str] = field(default_factory=list)  # ids that the server refuses for ever

    def run(self, run_id: str) -> ServerRun:
        return self.runs.setdefault(run_id, ServerRun(id=run_id))

    def upsert(self, told: dict[str, Any]) -> dict[str, Any]:
        run = self.run(told.get("name") or told["id"])
        inserted, run.upserts = run.upserts == 0, run.upserts + 1
        run.name, run.group = told.get("displayName") or run.name, told.get("groupName") or run.group
        run.job_type, run.tags = told.get("jobType") or run.job_type, told.get("tags") or run.tags
        if told.get("config"):
            run.config |= {key: value["value"] for key, value in json.loads(told["config"]).items() if key != "_wandb"}
        project = {"name": told.get("project") or "uncategorized", "entity": {"name": told.get("entity") or "tester"}}
        bucket = {"id": f"id-{run.id}", "name": run.id, "displayName": run.name, "description": None, "config": None, "sweepName": None}
        return {"upsertBucket": {"bucket": {**bucket, "project": project, "historyLineCount": len(run.lines)}, "inserted": inserted}}

    def resume(self, told: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(told["name"])
        if run is None:
            return {"model": {"id": "m", "name": "p", "entity": {"id": "e", "name": "tester"}, "bucket": None}}
        bucket = {
            "id": f"id-{run.id}",
            "name": run.id,
            "displayName": run.name,
            "summaryMetrics": json.dumps(run.summary),
            "logLineCount": 0,
            "historyLineCount": len(run.lines),
            "eventsLineCount": 0,
            "historyTail": json.dumps([run.lines[max(run.lines)]] if run.lines else []),
            "eventsTail": "[]",
            "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
            "notes": None,
            "tags": run.tags,
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": {"id": "m", "name": "p", "entity": {"id": "e", "name": "tester"}, "bucket": bucket}}

    def stream(self, run_id: str, told: dict[str, Any]) -> None:
        run = self.run(run_id)
        for name, chunk in (told.get("files") or {}).items():
            if name == HISTORY:
                self._add_rows(run, chunk["offset"], chunk["content"])
            elif name == SUMMARY:
                run.summary |= json.loads(chunk["content"][-1])
            else:
                run.files.append(name)
        run.preempting += bool(told.get("preempting"))
        if told.get("complete"):
            run.exits.append(int(told.get("exitcode") or 0))

    def _add_rows(self, run: ServerRun, offset: int, lines: list[str]) -> None:
        for place, line in enumerate(lines, start=offset):
            if run.lines.get(place, line) != line:
                self.faults.append(f"{run.id}: line {place} was {run.lines[place]}, now {line}")
            others = {json.loads(known)["_step"] for other, known in run.lines.items() if other != place}
            if (step := json.loads(line)["_step"]) in others:
                self.faults.append(f"{run.id}: _step {step} is there twice")
            run.lines[place] = line


class Stub:
    """The server in threads of this process. behaviour: ok, silent (never answers), slow N, or a status that everything gets."""

    def __init__(self, port: int = 0) -> None:
        self.books, self.lock = Books(), threading.Lock()
        self.behaviour = "ok"
        self.after_first = "ok"  # its behaviour once it was asked whether it is there
        self.port = port
        self._http: ThreadingHTTPServer | None = None
        self.come_back()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def runs(self) -> dict[str, ServerRun]:
        return self.books.runs

    def go_away(self) -> None:
        """Refuse connections from now on, and hang up those that are open."""
        http, self._http = self._http, None
        if http is None:
            return
        http.shutdown()
        http.server_close()
        for connection in list(http.open_connections):  # type: ignore[attr-defined]
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Go away for good."""
        self.behaviour = "ok"
        self.go_away()

    def come_back(self) -> None:
        """Listen again, at the same port, with what was known before."""
        if self._http is not None:
            return
        stub = self

        class Server(ThreadingHTTPServer):
            daemon_threads, block_on_close, allow_reuse_address = True, False, True
            request_queue_size = 64

            def __init__(self) -> None:
                self.open_connections: set[Any] = set()
                super().__init__(("127.0.0.1", stub.port), _handler(stub))

            def process_request(self, request: Any, client_address: Any) -> None:
                self.open_connections.add(request)
                super().process_request(request, client_address)

            def shutdown_request(self, request: Any) -> None:
                self.open_connections.discard(request)
                super().shutdown_request(request)

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that hung up is no news."""

        self._http = Server()
        self.port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def environment(self, key: str = "a" * 40) -> dict[str, str]:
        """What makes the real client talk to this server."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": key}

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any], str]:
        """(status, answer, what it was) of a POST."""
        told = json.loads(body)
        with self.lock:
            if path.endswith("/graphql"):
                return self._graphql(told)
            if path.endswith("/file_stream"):
                run_id = path.split("/")[-2]
                if run_id in self.books.deleted:
                    return 404, {"error": "run is deleted"}, "file_stream"
                before = len(self.books.faults)
                self.books.stream(run_id, told)
                return (400 if len(self.books.faults) > before else 200), {"exitcode": None, "limits": {}}, "file_stream"
        return 404, {"error": "unknown"}, "unknown"

    def _graphql(self, told: dict[str, Any]) -> tuple[int, dict[str, Any], str]:
        query, variables = told["query"], told.get("variables") or {}
        if "mutation UpsertBucket" in query:
            if (variables.get("name") or variables.get("id")) in self.books.deleted:
                text = "run was previously created and deleted; try a new run id"
                return 409, {"errors": [{"message": text}]}, "UpsertBucket"
            return 200, {"data": self.books.upsert(variables)}, "UpsertBucket"
        if "query RunResumeStatus" in query:
            return 200, {"data": self.books.resume(variables)}, "RunResumeStatus"
        what = query.split("(")[0].split("{")[0].split()
        return 200, {"errors": [{"message": "not known to this stub"}], "data": None}, " ".join(what[:2])


def _handler(stub: Stub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/_stub":
                return self._send(200, json.dumps({**asdict(stub.books), "behaviour": stub.behaviour}).encode())
            self._misbehave_or(200, {"answer": "a stub"}, b"", "GET")
            if stub.after_first != "ok":
                stub.behaviour = stub.after_first

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == "/_stub":
                return self._obey(json.loads(body))
            if stub.behaviour != "ok":
                return self._misbehave_or(200, {}, body, "POST")
            status, answer, what = stub.answer(self.path, body)
            self._note(body, f"POST {what} {status}")
            self._send(status, json.dumps(answer).encode())

        def _obey(self, told: dict[str, Any]) -> None:
            stub.behaviour = told.get("behaviour", stub.behaviour)
            stub.books.deleted += told.get("delete", [])
            self._send(200, b"{}")
            if told.get("away_s"):

                def go() -> None:
                    stub.go_away()
                    time.sleep(told["away_s"])
                    stub.come_back()

                threading.Thread(target=go, daemon=True).start()

        def _misbehave_or(self, status: int, answer: dict[str, Any], body: bytes, what: str) -> None:
            behaviour = stub.behaviour
            self._note(body, f"{what} {self.path} {behaviour}")
            while stub.behaviour == "silent" and behaviour == "silent":
                time.sleep(0.05)
            if behaviour.isdigit():
                return self._send(int(behaviour), b'{"errors": [{"message": "as told"}]}')
            if behaviour == "silent":
                self.close_connection = True
                return
            self._send(status, json.dumps(answer).encode())

        def _note(self, body: bytes, what: str) -> None:
            headers = "\n".join(f"{name}: {value}" for name, value in self.headers.items() if name != "Authorization")
            with stub.lock:
                stub.books.requests.append(what)
                stub.books.bodies.append(f"{self.requestline}\n{headers}\n\n{body.decode(errors='replace')}")

        def _send(self, status: int, payload: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


@contextlib.contextmanager
def serving() -> Iterator[Stub]:
    """A stub for the length of a test, which must not have been sent a step twice."""
    stub = Stub()
    try:
        yield stub
        assert not stub.books.faults, stub.books.faults
    finally:
        stub.close()


def look(url: str) -> Books:
    """What a stub in another process holds."""
    with urllib.request.urlopen(f"{url}/_stub", timeout=10) as answer:
        told = json.loads(answer.read())
    told.pop("behaviour")
    runs = {
        run_id: ServerRun(**{**run, "lines": {int(at): line for at, line in run["lines"].items()}}) for run_id, run in told["runs"].items()
    }
    return Books(**{**told, "runs": runs})


def tell(url: str, **words: Any) -> None:
    """behaviour=..., delete=[ids], away_s=seconds: to a stub in another process."""
    urllib.request.urlopen(urllib.request.Request(f"{url}/_stub", json.dumps(words).encode(), method="POST"), timeout=10).close()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port-file", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    stub = Stub(arguments.port)
    part = arguments.port_file.with_suffix(".part")
    part.write_text(stub.url)
    part.rename(arguments.port_file)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    return 0


if __name__ == "__main__":
    sys.exit(main())
