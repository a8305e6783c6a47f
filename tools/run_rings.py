"""Runs the tests ring by ring, each in a pytest of its own, and adds them up: seconds a ring, what was skipped and why.

RING unset: what this machine can do in minutes. RING=full: everything, no skip but a GPU's, within 30 minutes, the slurm ring beside the
others because it mostly waits. RING=NAME: that ring, whole.
Leaves to tests/conftest.py which tests a machine can run. Its one invariant: tests that vanish count as failures, never as nothing.
"""

import os
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
SLURM_SHARES = 2  # each with a cluster of its own
#: Measured on 2 cores; of other files the size says enough.
SLURM_SECONDS = {
    "test_chaos.py": 450.0,
    "test_control_on_slurm.py": 80.0,
    "test_endings.py": 300.0,
    "test_scale.py": 70.0,
    "test_site_on_slurm.py": 60.0,
    "test_sweep_on_slurm.py": 340.0,
}
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


def lanes_of(rings: dict[str, list[str]]) -> list[list[tuple[str, list[str]]]]:
    """What may run side by side: the first ring, and beside it the slurm ring in shares, which mostly wait; other rings after a share."""
    plain = [(name, arguments) for name, arguments in rings.items() if name != "slurm"]
    if "slurm" not in rings or not plain:
        return [list(rings.items())]
    shares: list[list[Path]] = [[] for _ in range(SLURM_SHARES)]
    # The longest files first, each to the share that is shortest so far.
    for path in sorted(TESTS.glob("slurm/test_*.py"), key=lambda path: (-_weight(path), path.name)):
        min(shares, key=lambda share: sum(map(_weight, share))).append(path)
    lanes = [[("slurm", [str(path) for path in sorted(share)])] for share in shares if share]
    # Not after the first ring, which is the longest: 17 minutes of it and 10 of the faults were nearly the limit, the shares took 14.
    return [plain[:1], *lanes[:-1], lanes[-1] + plain[1:]] if lanes else [plain]


def _weight(path: Path) -> float:
    """Seconds, about: those that were measured, else a guess from the file's size."""
    return SLURM_SECONDS.get(path.name, path.stat().st_size / 60)


class RunningRing:
    """One pytest over one ring, or over a share of it. Beside others its output is kept and shown when it has ended."""

    def __init__(self, name: str, arguments: list[str], *, is_alone: bool) -> None:
        self.name, self.note, self._start = name, "", time.monotonic()
        self._folder = tempfile.TemporaryDirectory()
        self._record, self._log = Path(self._folder.name, "junit.xml"), Path(self._folder.name, "output.txt")
        print(f"\n=== ring {name}: {' '.join(arguments)}{'' if is_alone else ' (output when it has ended)'}", flush=True)
        command = [sys.executable, "-m", "pytest", f"--junitxml={self._record}", *arguments]
        with open(self._log, "wb") as output:
            # A session of its own: what a test leaves running can be ended with it, and Ctrl-C reaches it only through us.
            self.process = subprocess.Popen(
                command, start_new_session=True, stdout=None if is_alone else output, stderr=None if is_alone else subprocess.STDOUT
            )

    def result(self) -> RingResult:
        """After its end: what it did, its output shown first."""
        seconds = time.monotonic() - self._start
        if text := self._log.read_text(errors="replace"):
            print(f"\n=== ring {self.name}: output\n{text}", flush=True)
        found = read_record(self.name, self._record, self.process.returncode, seconds, self.note)
        self._folder.cleanup()
        return found

    def end(self, note: str) -> None:
        """Ask for an orderly end, then kill."""
        self.note = note
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=TEARDOWN_S)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def run_lanes(lanes: list[list[tuple[str, list[str]]]], stop_at: float) -> list[RingResult]:
    """Run every lane, its rings one after another, until stop_at on the monotonic clock; results in the order of their ends."""
    results: list[RingResult] = []
    waiting, running = [list(lane) for lane in lanes], []
    try:
        while any(waiting) or running:
            for lane in waiting:
                if lane and not any(ring.lane is lane for ring in running):
                    running.append(_InLane(lane, RunningRing(*lane.pop(0), is_alone=len(lanes) == 1)))
            for entry in [entry for entry in running if entry.ring.process.poll() is not None]:
                running.remove(entry)
                results.append(entry.ring.result())
            if time.monotonic() > stop_at:
                return results + _end_all(running, f"stopped after {HARD_LIMIT_S // 60} minutes of tests")
            time.sleep(0.05)
    except KeyboardInterrupt:
        results += _end_all(running, "interrupted")
    return results


@dataclass
class _InLane:
    lane: list[tuple[str, list[str]]]
    ring: RunningRing


def _end_all(running: list[_InLane], note: str) -> list[RingResult]:
    for entry in running:
        entry.ring.end(note)
    return [entry.ring.result() for entry in running]


def merged(results: list[RingResult]) -> list[RingResult]:
    """One result a ring: shares of one ring ran side by side, so the longest counts."""
    by_name: dict[str, RingResult] = {}
    for result in results:
        known = by_name.setdefault(result.name, RingResult(name=result.name))
        by_name[result.name] = RingResult(
            name=result.name,
            seconds=max(known.seconds, result.seconds),
            passed=known.passed + result.passed,
            failed=known.failed + result.failed,
            skips=known.skips + result.skips,
            gpu_skips=known.gpu_skips + result.gpu_skips,
            note=", ".join(filter(None, (known.note, result.note))),
        )
    return list(by_name.values())


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


def faults(results: list[RingResult], full: bool, seconds: float) -> list[str]:
    """What makes the whole fail: failures anywhere; under RING=full also skips and time."""
    found = [
        f"ring {result.name}: {result.failed} failed" + (f" ({result.note})" if result.note else "") for result in results if result.failed
    ]
    if not full:
        return found
    found += [
        f"ring {result.name}: skipped, but only GPU tests may be: {reason}" for result in results for reason in sorted(set(result.skips))
    ]
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
    start = time.monotonic()
    rings = chosen_rings(ring)
    results = merged(run_lanes(lanes_of(rings) if ring == "full" else [list(rings.items())], start + HARD_LIMIT_S))
    found = faults(results, full=ring == "full", seconds=time.monotonic() - start)
    print(summary(results, found), flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
