"""The table of endings: scenes that are played together, what was seen of each, and the text that is printed at the end of the session.

Rows of a wave are submitted at once and struck at once, since an eviction or a lost node takes everything on a node. One invariant: a
line of the table was seen and found as expected; what did not run, or was otherwise, is missing from it.
"""

import os
import re
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from pathlib import Path

import pytest
from cluster import Cluster
from disturb import Disturber
from scenes import Scene, assert_stays_away

from hpc.batch_word import known_end
from hpc.canceller import refine, who_cancelled
from hpc.requeue import budget_of
from seresnet import attempts
from seresnet.attempts import End
from seresnet.run_folder import RunFolder

WIDTHS = (2, 32, 14, 24, 12, 14, 10)
HEADS = ("#", "what was done", "job", "class recorded", "requeued by", "budget drawn", "at the end")
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is recorded of a job that is over. A star: inferred by the next attempt. "/" stands between the runs of a pack."""

    classes: str
    requeued: str = "no"
    budget: str = "-"
    state: str = "COMPLETED"


def serves(scene: Scene) -> None:
    """It waits for a stop; with more rows than CPUs it may have to queue."""
    scene.cluster.wait_for_state(scene.task(), "RUNNING", "COMPLETED", "FAILED", timeout_s=150)
    scene.wait_until_serving()


def _nothing(wave: "Wave", scene: Scene) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Row:
    """One ending: how it is brought about, and what must be seen of it (one of `expect`)."""

    what: str
    job: str
    send: Callable[[Cluster, Path], Scene]
    expect: tuple[Seen, ...]
    ready: Callable[[Scene], object] = serves
    is_struck: bool = False  # by what strikes its whole wave
    act: Callable[["Wave", Scene], object] = _nothing  # done to it alone, after the strike
    says: str = ""  # in some record of its attempts
    requeuer: str = "Slurm"  # who did it where neither the supervisor nor the batch script did


@dataclass(kw_only=True)
class Wave:
    """Rows that are played at the same time; `strike` is done once to all struck rows, when each of them is ready."""

    rows: Sequence[Row]
    strike: Callable[["Wave"], object] | None = None
    is_slow: bool = True
    disturber: Disturber = field(init=False)
    scenes: list[Scene] = field(default_factory=list)  # those to be struck
    _seen: "dict[str, Future[Seen]]" = field(default_factory=dict)
    _barrier: threading.Barrier = field(init=False)

    def seen(self, row: Row, cluster: Cluster, chosen: Sequence[Row]) -> Seen:
        """What was seen of a row; the first one that asks has all chosen rows of the wave played."""
        if not self._seen:
            self._play(cluster, [one for one in self.rows if one in chosen])
        return self._seen[row.what + row.job].result()

    def _play(self, cluster: Cluster, rows: Sequence[Row]) -> None:
        self.disturber = Disturber(cluster, lambda below: 0)
        self._barrier = threading.Barrier(sum(row.is_struck for row in rows) or 1, action=self._strike, timeout=150)
        try:
            with ThreadPoolExecutor(max_workers=len(rows)) as pool:
                self._seen = {row.what + row.job: pool.submit(self._play_row, row, cluster) for row in rows}
        finally:
            self.disturber.wait_until_restored()
            cluster.cancel_everything()
            self.disturber.clean_up()  # what a cut-off node left running

    def _strike(self) -> None:
        assert self.strike is not None
        self.strike(self)

    def _play_row(self, row: Row, cluster: Cluster) -> Seen:
        try:
            folder = Path(tempfile.mkdtemp(prefix="ending-", dir=cluster.work))
            cluster.give_to_user(folder)
            folder.chmod(0o755)
            scene = row.send(cluster, folder)
            row.ready(scene)
            if row.is_struck:
                self.scenes.append(scene)
                self._barrier.wait()
        except BaseException:
            self._barrier.abort()
            raise
        row.act(self, scene)
        seen = look(scene, row.requeuer)
        records = "\n".join(path.read_text() for path in scene.sweep.glob("*/attempts/*.json"))
        assert row.says in records, f"{row.says!r} is in no record\n{records}\n{scene.say()}"
        assert seen in row.expect, f"{row.what}: {seen}\n{scene.say()}"
        return seen


def look(scene: Scene, requeuer: str, timeout_s: float = 200.0) -> Seen:
    """Wait until the job is over and stays so, and read what was written."""
    limit = time.monotonic() + timeout_s
    while (facts := scene.cluster.show_job(scene.task())).get("JobState") not in OVER or _is_on_its_way(scene, facts):
        assert time.monotonic() < limit, f"{scene.task()} is {facts.get('JobState')} after {timeout_s:.0f} s\n{scene.say()}"
        time.sleep(0.4)
    if facts["JobState"] != "COMPLETED" and facts["Restarts"] == "0":
        assert_stays_away(scene, 8.0)
    code = facts["ExitCode"].partition(":")[0]
    state = facts["JobState"] + (f" {code}" if facts["JobState"] == "FAILED" and code != "0" else "")
    runs = sorted(path.parent for path in scene.sweep.glob("*/attempts"))
    return Seen(
        classes=" / ".join(_row_of([_class(scene, end) for end in _ends(run)]) for run in runs),
        budget=" / ".join(_row_of([_budget(run, end) for end in _ends(run)]) for run in runs),
        requeued=_requeued_by(scene, int(facts["Restarts"]), requeuer),
        state=state,
    )


def _is_on_its_way(scene: Scene, facts: dict[str, str]) -> bool:
    """Between an end and the requeue that is under way Slurm shows a final state for a moment."""
    return facts["Restarts"] == "0" and facts["JobState"] in ("PREEMPTED", "TIMEOUT") and "requeue=True" in _logs(scene)


def _row_of(words: Sequence[str]) -> str:
    """`a, b x3`"""
    counts: list[list[object]] = []
    for word in words:
        if counts and counts[-1][0] == word:
            counts[-1][1] = int(str(counts[-1][1])) + 1
        else:
            counts.append([word, 1])
    said = [f"{word}" if count == 1 else f"{word} x{count}" for word, count in counts]
    return "-" if not said or all(word == "-" for word in words) else ", ".join(said)


def _ends(run: Path) -> list[End]:
    """As status and launch know them: the record, and what the batch script saw."""
    folder = RunFolder(path=run)
    return [end for claim in attempts.read_claims(folder) if (end := known_end(folder, claim)) is not None]


def _class(scene: Scene, end: End) -> str:
    """The recorded class, as status and launch show it: of a cancellation accounting knows who."""
    ending = end.ending
    if ending == "cancelled":
        ending, _ = refine(ending, end.reason, scene.task(), _cancellers(scene), scene.sweep.stat().st_uid)
    return ending + ("*" if end.inferred else "")


def _cancellers(scene: Scene) -> dict[str, int]:
    limit = time.monotonic() + 20
    while not (uids := who_cancelled([scene.task()])) and time.monotonic() < limit:
        time.sleep(0.5)  # slurmdbd hears of it a moment later
    assert uids, "accounting does not say who cancelled"
    return uids


def _budget(run: Path, end: End) -> str:
    if "budget" in end.facts:
        return str(end.facts["budget"] or "-")
    saved = list(run.glob(f"ckpt/g{end.generation:04d}-*"))
    return budget_of(end.ending, bool(saved)) or "-"


def _logs(scene: Scene) -> str:
    return "".join(path.read_text(errors="replace") for path in (*scene.sweep.glob("logs/*.out"), *scene.sweep.glob("job.out")))


def _requeued_by(scene: Scene, restarts: int, otherwise: str) -> str:
    text = _logs(scene)
    ours, shells = len(re.findall(r"verdict=\S+ requeue=True", text)), text.count("requeue=yes")
    by = ["supervisor"] * ours + ["batch script"] * shells
    by += [otherwise] * (restarts - len(by))
    return _row_of(by) if restarts else "no"


# --- the text ---


class Table:
    """A plugin of pytest: prints the rows that were seen at the end of the session."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, ...]] = []

    def add(self, row: Row, seen: Seen) -> None:
        classes, requeued, budget, state = astuple(seen)
        self.lines.append((row.what, row.job, classes, requeued, budget, state))

    def text(self) -> str:
        lines = [_cells(HEADS), "  ".join("-" * width for width in WIDTHS)]
        return "\n".join([*lines, *(_cells((str(number), *line)) for number, line in enumerate(self.lines, 1))])

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.lines:
            terminalreporter.section(f"{len(self.lines)} endings (* inferred by the next attempt; / between the runs of a pack)")
            terminalreporter.write_line(self.text())


def _cells(cells: Sequence[str]) -> str:
    wrapped = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, WIDTHS, strict=True)]
    rows = [[part[index] if index < len(part) else "" for part in wrapped] for index in range(max(map(len, wrapped)))]
    return "\n".join("  ".join(f"{cell:{width}}" for cell, width in zip(row, WIDTHS, strict=True)).rstrip() for row in rows)


def talk_to(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """What asks Slurm in this process asks this cluster."""
    assert os.geteuid() == 0
    monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
