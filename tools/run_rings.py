"""Runs the tests ring by ring, each in a pytest of its own, and adds them up: seconds a ring, what was skipped and why.

RING unset: what this machine can do in minutes. RING=full: everything, no skip but a GPU's, within 30 minutes. RING=NAME: that ring, whole.
Leaves to tests/conftest.py which tests a machine can run. Its one invariant: tests that vanish count as failures, never as nothing.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path("tests")
UNIT_FOLDERS = ("seresnet", "hpc")  # with tests/test_*.py: the ring that runs first
LIMIT_S = 30 * 60  # over it RING=full fails
HARD_LIMIT_S = 60 * 60  # over it the ring is stopped: a CI that is cut off from outside shows no count at all
TEARDOWN_S = 60  # for fixtures to stop the cluster they started


@dataclass(frozen=True, kw_only=True)
class RingResult:
    """What one pytest did. Skips are reasons; gpu_skips are those of tests that need a GPU."""

    name: str
    seconds: float = 0.0
    passed: int = 0
    failed: int = 0
    skips: list[str] = field(default_factory=list)
    gpu_skips: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def skipped(self) -> int:
        return len(self.skips) + len(self.gpu_skips)


def find_rings(tests: Path) -> dict[str, list[str]]:
    """Ring name to pytest arguments, in order. Every folder with tests is in one, so a new folder cannot be forgotten."""
    folders = sorted(path.name for path in tests.iterdir() if path.is_dir() and any(path.rglob("test_*.py")))
    unit = [str(path) for path in sorted(tests.glob("test_*.py"))]
    unit += [str(tests / name) for name in UNIT_FOLDERS if name in folders]
    others = [name for name in folders if name not in UNIT_FOLDERS]
    others.sort(key=lambda name: name == "slurm")  # last: the slowest to set up
    # A ring without arguments would be all tests; one that has no tests is none.
    return {**({"unit": unit} if unit else {}), **{name: [str(tests / name)] for name in others}}


def run_ring(name: str, arguments: list[str], stop_at: float) -> RingResult:
    """Run pytest over one ring; stop_at is on the monotonic clock."""
    print(f"\n=== ring {name}: {' '.join(arguments)}", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder, "junit.xml")
        # A session of its own: what a test leaves running can be ended with it, and Ctrl-C reaches it only through us.
        process = subprocess.Popen([sys.executable, "-m", "pytest", f"--junitxml={record}", *arguments], start_new_session=True)
        note = wait(process, stop_at)
        return read_record(name, record, process.returncode, time.monotonic() - start, note)


def wait(process: "subprocess.Popen[bytes]", stop_at: float) -> str:
    """Wait until stop_at; then ask for an orderly end, then kill. Returns why it was cut short, or ""."""
    try:
        process.wait(timeout=max(1.0, stop_at - time.monotonic()))
        return ""
    except subprocess.TimeoutExpired:
        note = f"stopped after {HARD_LIMIT_S // 60} minutes of tests"
    except KeyboardInterrupt:
        note = "interrupted"
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=TEARDOWN_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return note


def read_record(name: str, record: Path, returncode: int, seconds: float, note: str) -> RingResult:
    """Counts from pytest's junit file. A run that ended badly without a failed test in it counts as one failure."""
    cases = ElementTree.parse(record).getroot().iter("testcase") if record.exists() else []
    passed = failed = 0
    skips: list[str] = []
    gpu_skips: list[str] = []
    for case in cases:
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif skip is not None:
            needs = {item.get("value") for item in case.iter("property") if item.get("name") == "needs"}
            (gpu_skips if "gpu" in needs else skips).append(skip.get("message") or "no reason given")
        else:
            passed += 1
    if returncode == 5 and not note:  # pytest's "no tests"
        note = "no test in it"
    if returncode != 0 and not failed:
        failed, note = 1, note or f"pytest exited {returncode} without a failed test"
    return RingResult(name=name, seconds=seconds, passed=passed, failed=failed, skips=skips, gpu_skips=gpu_skips, note=note)


def faults(results: list[RingResult], full: bool) -> list[str]:
    """What makes the whole fail: failures anywhere; under RING=full also skips and time."""
    found = [
        f"ring {result.name}: {result.failed} failed" + (f" ({result.note})" if result.note else "") for result in results if result.failed
    ]
    if not full:
        return found
    found += [
        f"ring {result.name}: skipped, but only GPU tests may be: {reason}" for result in results for reason in sorted(set(result.skips))
    ]
    seconds = sum(result.seconds for result in results)
    if seconds > LIMIT_S:
        found.append(f"the rings took {seconds / 60:.0f} minutes, {LIMIT_S // 60} are allowed")
    return found


def summary(results: list[RingResult], found: list[str]) -> str:
    """The text that ends the output; its last line is the count, alone."""
    lines = ["", f"{'ring':<12} {'seconds':>8} {'passed':>7} {'failed':>7} {'skipped':>8}"]
    for result in results:
        counts = f"{result.name:<12} {result.seconds:>8.1f} {result.passed:>7} {result.failed:>7} {result.skipped:>8}"
        lines.append(f"{counts}  {result.note}".rstrip())
    for result in results:
        reasons = result.skips + result.gpu_skips
        lines += [f"skipped in {result.name}: {reasons.count(reason)} x {reason}" for reason in sorted(set(reasons))]
    lines += [f"FAILED: {fault}" for fault in found]
    # A fault that no test stands for (a forbidden skip, the time) is counted too: nobody may read "0 failed" beside exit 1.
    failed = sum(result.failed for result in results) or len(found)
    passed, skipped = sum(result.passed for result in results), sum(result.skipped for result in results)
    return "\n".join([*lines, f"{passed} passed, {failed} failed, {skipped} skipped"])


def chosen_rings(ring: str) -> dict[str, list[str]]:
    """The rings that RING names; exits 2 with the valid names for a name that is none."""
    rings = find_rings(TESTS)
    if ring in ("", "full"):
        return rings
    rings["gpu"] = ["-m", "gpu", str(TESTS)]
    if ring not in rings:
        sys.exit(f"RING={ring} is not a ring. Use full, {', '.join(rings)}, or leave it unset.")
    return {ring: rings[ring]}


def main() -> int:
    """Exit 0 if nothing failed, 1 otherwise."""
    ring = os.environ.get("RING", "")
    # One thread a process: numeric results of tests do not depend on the machine's cores, and two cores are not fought over.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # pytest is in a session of its own: ended by us, or by nobody
    start, results = time.monotonic(), []
    for name, arguments in chosen_rings(ring).items():
        result = run_ring(name, arguments, start + HARD_LIMIT_S)
        results.append(result)
        if re.match("stopped|interrupted", result.note):
            break
    found = faults(results, full=ring == "full")
    print(summary(results, found), flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
