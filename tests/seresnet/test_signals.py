"""A stop request ends a process at once until its first step, whatever its main thread is doing, and only sets a flag after that."""

import signal
import subprocess
import sys
import time

import pytest

_PROCESS = """
import ctypes, os, sys, threading, time
from seresnet.signals import StopFlag

def leave(why):
    os.write(1, f"{why}\\n".encode())  # one call: another thread may be printing
    os._exit(75)

def stuck():  # in C, where no handler of Python's runs: a lock of the system's, taken twice
    libc, lock = ctypes.CDLL(None), ctypes.create_string_buffer(256)
    libc.pthread_mutex_init(lock, None)
    libc.pthread_mutex_lock(lock)
    os.write(1, b"ready\\n")
    libc.pthread_mutex_lock(lock)

def training():
    stop.first_step()
    os.write(1, b"ready\\n")
    while not stop.is_set:
        time.sleep(0.01)
    time.sleep(1)
    print(f"flag {stop.signal_name}", flush=True)

stop = StopFlag()
stop.install(at_once=leave, look=lambda: "a peer" if sys.argv[1] == "bereaved" else None)
{"stuck": stuck, "training": training, "bereaved": stuck}[sys.argv[1]]()
"""


def start(what: str, *, blocked: bool = False) -> "subprocess.Popen[str]":
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1] if blocked else [])
    try:
        return subprocess.Popen([sys.executable, "-c", _PROCESS, what], stdout=subprocess.PIPE, text=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def wait_until_ready(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None and process.stdout.readline() == "ready\n"


def ending(process: "subprocess.Popen[str]") -> tuple[str, int]:
    """What it has printed since, and its code."""
    try:
        printed = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    return printed.strip(), process.returncode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_before_the_first_step_a_signal_ends_a_process_that_is_stuck_in_c(number: signal.Signals) -> None:
    process = start("stuck")
    wait_until_ready(process)
    process.send_signal(number)
    assert ending(process) == (number.name, 75)


def test_after_the_first_step_a_signal_sets_the_flag_and_the_first_one_names_it() -> None:
    process = start("training")
    wait_until_ready(process)
    process.send_signal(signal.SIGUSR2)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert ending(process) == ("flag SIGUSR2", 0)


def test_a_signal_from_before_the_handlers_counts() -> None:
    process = start("stuck", blocked=True)
    process.send_signal(signal.SIGUSR1)
    assert ending(process)[0].splitlines()[-1:] == ["SIGUSR1"] and process.returncode == 75


def test_a_process_whose_peer_has_left_leaves_without_a_signal() -> None:
    printed, code = ending(start("bereaved"))
    assert (printed.splitlines()[-1], code) == ("a peer", 75)
