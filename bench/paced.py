"""Programs that train one epoch for each line they are given: started side by side, driven in turn.

What they are is the caller's business. One invariant: all but the one whose turn it is wait for their input and use no processor.
"""

import contextlib
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]


class Paced:
    """One such program. It prints parameters=N when it is ready, and a line of key=value pairs that begins with epoch= after each."""

    def __init__(self, name: str, command: Sequence[str], cwd: Path, environ: dict[str, str]) -> None:
        self.name = name
        self.last: dict[str, str] = {}
        self._seen: deque[str] = deque(maxlen=30)
        self._process = subprocess.Popen(
            [sys.executable, *command],
            cwd=cwd,
            env=environ,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        # A program that hangs would keep us here for ever.
        self._limit = threading.Timer(900, self._process.kill)
        self._limit.daemon = True
        self._limit.start()
        try:
            self.parameters = int(self._read("parameters")["parameters"])
        except BaseException:  # nobody else has it yet
            self.close()
            raise

    def epoch(self) -> None:
        """Let it train, test and save one epoch; returns when it says so."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._give_up()
        self.last = self._read("epoch")

    def cpu_seconds(self) -> float:
        """Processor seconds of it and of its children so far, the started and the living; 0 where there is no /proc."""
        return sum(_cpu_seconds(pid) for pid in [self._process.pid, *_children(self._process.pid)])

    def close(self) -> None:
        """End it: at the end of its input, or by SIGKILL where an epoch is under way."""
        self._limit.cancel()
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _read(self, first_key: str) -> dict[str, str]:
        """The next line that begins with this key; others are what the program says to people."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._seen.append(line.rstrip())
            if line.startswith(f"{first_key}="):
                return dict(word.split("=", 1) for word in line.split())
        return self._give_up()

    def _give_up(self) -> dict[str, str]:
        raise SystemExit(f"{self.name} ended before its time:\n" + "\n".join(self._seen))


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for thread in Path(f"/proc/{pid}/task").iterdir() for word in (thread / "children").read_text().split()]
    except OSError:
        return []


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
