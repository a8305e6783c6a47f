"""Runs the tests ring by ring, each in a pytest of its own, and adds them up: seconds a ring, what was skipped and why.

RING unset: what this machine can do in minutes. RING=full: everything, no skip but a GPU's, within 30 minutes, each ring in shares, several
pytests at once because most of them wait half of their time. RING=NAME: that ring, whole.
Leaves to tests/conftest.py which tests a machine can run. Its one invariant: tests that vanish count as failures, never as nothing.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field, replace
from pathlib import Path

TESTS = Path("tests")
UNIT_FOLDERS = ("seresnet", "hpc")  # with tests/test_*.py: the ring that runs first
LIMIT_S = 30 * 60  # over it RING=full fails
HARD_LIMIT_S = 60 * 60  # over it the ring is stopped: a CI that is cut off from outside shows no count at all
#: RING=full runs so many pytests at once. On 2 cores: two shares of the slurm ring mostly wait, two others keep the cores busy.
LANES = 4
#: A slurm share starts a cluster of its own, a faults share a server that forks ranks and its undisturbed runs: few of them.
SHARES = {"unit": 3, "faults": 2, "slurm": 2}
#: Measured beside others on 2 cores, of the files that take long; of other files the size says enough.
FILE_SECONDS = {
    "test_averaged_runs.py": 40.0,
    "test_chaos.py": 350.0,
    "test_cluster_doc.py": 100.0,
    "test_compiled.py": 75.0,
    "test_control_on_slurm.py": 100.0,
    "test_divergence.py": 88.0,
    "test_endings.py": 290.0,
    "test_fork.py": 39.0,
    "test_kills.py": 75.0,
    "test_launchers_race.py": 50.0,
    "test_mirror.py": 69.0,
    "test_nodes.py": 58.0,
    "test_nodes_slurm.py": 67.0,
    "test_owners.py": 34.0,
    "test_packs.py": 37.0,
    "test_queue_limits.py": 164.0,
    "test_relaunch_on_slurm.py": 85.0,
    "test_scale.py": 70.0,
    "test_signals_anytime.py": 58.0,
    "test_site_on_slurm.py": 60.0,
    "test_status_view.py": 47.0,
    "test_sweep_on_slurm.py": 250.0,
    "test_watchdog_attacks.py": 108.0,
}
BYTES_PER_SECOND = {"unit": 4000, "faults": 700, "slurm": 100}
SLOWEST = 10  # named of each ring
TEARDOWN_S = 60  # for fixtures to stop the cluster they started


@dataclass(frozen=True, kw_only=True)
class RingResult:
    """What one pytest did. Skips are reasons; gpu_skips are those of tests that need a GPU."""

    name: str
    seconds: float = 0.0
    began: float = 0.0  # on the monotonic clock
    passed: int = 0
    failed: int = 0
    skips: list[str] = field(default_factory=list)
    gpu_skips: list[str] = field(default_factory=list)
    note: str = ""
    slowest: list[tuple[float, str]] = field(default_factory=list)  # seconds and test

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


Piece = tuple[str, list[str]]  # a ring's name and the arguments of one pytest


def pieces_of(rings: dict[str, list[str]]) -> list[Piece]:
    """Every ring in shares, the longest first: whoever is free takes the next, and all are done at about the same time."""
    found: list[tuple[float, Piece]] = []
    for name, arguments in rings.items():
        weights = {path: _weight(name, path) for path in _files(arguments)}
        for share in _shares(weights, SHARES.get(name, 1)):
            found.append((sum(weights[path] for path in share), (name, [str(path) for path in sorted(share)])))
    # Those with a cluster before all others: they wait most, and nothing else can fill the time that they need.
    return [piece for _, piece in sorted(found, key=lambda entry: (entry[1][0] != "slurm", -entry[0]))]


def _shares(weights: dict[Path, float], count: int) -> list[list[Path]]:
    """The heaviest files first, each to the share that is lightest so far."""
    shares: list[list[Path]] = [[] for _ in range(count)]
    for path in sorted(weights, key=lambda path: (-weights[path], path.name)):
        min(shares, key=lambda share: sum(weights[each] for each in share)).append(path)
    return [share for share in shares if share]


def _files(arguments: list[str]) -> list[Path]:
    """Folders among pytest's arguments as the test files in them."""
    return [path for argument in map(Path, arguments) for path in ([argument] if argument.is_file() else argument.rglob("test_*.py"))]


def _weight(ring: str, path: Path) -> float:
    """Seconds, about: those that were measured, else a guess from the file's size."""
    return FILE_SECONDS.get(path.name, path.stat().st_size / BYTES_PER_SECOND.get(ring, 500))


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
        return replace(found, began=self._start)

    def end(self, note: str) -> None:
        """Ask for an orderly end, then kill."""
        self.note = note
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=TEARDOWN_S)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def run_pieces(pieces: list[Piece], lanes: int, stop_at: float) -> list[RingResult]:
    """Run every piece, at most `lanes` at once, until stop_at on the monotonic clock; results in the order of their ends."""
    results: list[RingResult] = []
    waiting, running = list(pieces), list[RunningRing]()
    try:
        while waiting or running:
            while waiting and len(running) < lanes:
                running.append(RunningRing(*waiting.pop(0), is_alone=lanes == 1))
            for ring in [ring for ring in running if ring.process.poll() is not None]:
                running.remove(ring)
                results.append(ring.result())
            if time.monotonic() > stop_at:
                return results + _end_all(running, f"stopped after {HARD_LIMIT_S // 60} minutes of tests")
            time.sleep(0.05)
    except KeyboardInterrupt:
        results += _end_all(running, "interrupted")
    return results


def _end_all(running: list[RunningRing], note: str) -> list[RingResult]:
    for ring in running:
        ring.end(note)
    return [ring.result() for ring in running]


def merged(results: list[RingResult]) -> list[RingResult]:
    """One result a ring, from the beginning of its first share to the end of its last."""
    return [_together([result for result in results if result.name == name]) for name in dict.fromkeys(result.name for result in results)]


def _together(shares: list[RingResult]) -> RingResult:
    began = min(share.began for share in shares)
    return RingResult(
        name=shares[0].name,
        seconds=max(share.began + share.seconds for share in shares) - began,
        began=began,
        passed=sum(share.passed for share in shares),
        failed=sum(share.failed for share in shares),
        skips=[reason for share in shares for reason in share.skips],
        gpu_skips=[reason for share in shares for reason in share.gpu_skips],
        note=", ".join(filter(None, (share.note for share in shares))),
        slowest=sorted((test for share in shares for test in share.slowest), reverse=True)[:SLOWEST],
    )


def read_record(name: str, record: Path, returncode: int, seconds: float, note: str) -> RingResult:
    """Counts from pytest's junit file. A run that ended badly without a failed test in it counts as one failure."""
    cases = list(ElementTree.parse(record).getroot().iter("testcase")) if record.exists() else []
    slowest = sorted(((float(case.get("time", 0)), f"{case.get('classname')}::{case.get('name')}") for case in cases), reverse=True)
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
    return RingResult(
        name=name, seconds=seconds, passed=passed, failed=failed, skips=skips, gpu_skips=gpu_skips, note=note, slowest=slowest[:SLOWEST]
    )


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
        lines += [f"slow in {result.name}: {seconds:6.1f} s  {test}" for seconds, test in result.slowest if seconds >= 1]
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
    pieces, lanes = (pieces_of(rings), LANES) if ring == "full" else (list(rings.items()), 1)
    results = merged(run_pieces(pieces, lanes, start + HARD_LIMIT_S))
    found = faults(results, full=ring == "full", seconds=time.monotonic() - start)
    print(summary(results, found), flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
