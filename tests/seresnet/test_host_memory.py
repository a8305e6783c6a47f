"""Memory that was freed serves again without page faults, and asking for that changes nothing where it cannot be had."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from seresnet.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def work():
    for _ in range(20):
        torch.zeros(48_000_000 // 4).add_(1)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_that_was_freed_costs_no_page_fault_again() -> None:
    kept, given_back = faults("keep"), faults("plain")
    assert kept < given_back / 10, f"{kept} page faults with freed memory kept, {given_back} without"


def test_another_system_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from seresnet import host_memory

    monkeypatch.setattr(sys, "platform", "darwin")
    assert not host_memory.keep_freed_memory()
