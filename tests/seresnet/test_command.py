"""What a command does whose stdout is full or unread: the real device for it, and a real pipe."""

import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest

ROOT = Path(__file__).parents[2]
FULL = Path("/dev/full")

#: Prints through main(), which catches an OSError as every command does, and names a file for it.
COMMAND = """
import sys
from seresnet.command import run_command
from seresnet.errors import ToolkitError

def main():
    try:
        print("answer", flush={flush})
        return {code}
    except ToolkitError as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(f"{{error.filename or 'runs/demo'}}: {{error.strerror}}", file=sys.stderr)
    return 2

run_command(main)
"""


BUFFERED = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}


def ran(code: str, stdout: IO[Any] | None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=BUFFERED, stdout=stdout, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize("flush", [True, False], ids=["at the print", "at the end"])
def test_a_full_stdout_is_told_once_as_that_and_ends_with_2(flush: bool) -> None:
    with FULL.open("w") as full:
        done = ran(COMMAND.format(flush=flush, code=0), full)
    assert (done.returncode, done.stderr) == (2, "stdout: No space left on device\n")


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
def test_help_into_a_full_disk_has_no_traceback() -> None:
    with FULL.open("w") as full:
        done = subprocess.run([sys.executable, "-m", "hpc.collect", "--help"], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "stdout: No space left on device\n")


@pytest.mark.parametrize(("flush", "told"), [(True, (2, "stdout: Broken pipe\n")), (False, (1, ""))], ids=["at the print", "at the end"])
def test_a_pipe_that_nobody_reads_is_no_fault_of_a_file(flush: bool, told: tuple[int, str]) -> None:
    reading = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE)
    reading.wait()
    done = ran(COMMAND.format(flush=flush, code=1), reading.stdin)
    assert reading.stdin is not None
    reading.stdin.close()
    assert (done.returncode, done.stderr) == told


def test_without_a_stdout_the_exit_code_is_the_commands_own() -> None:
    done = subprocess.run(["bash", "-c", 'exec "$0" -c "$1" >&-', sys.executable, COMMAND.format(flush=True, code=3)], cwd=ROOT)
    assert done.returncode == 3
