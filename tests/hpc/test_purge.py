"""Status warns before a site removes files that nobody has opened, names runs and dates, and asks few files."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_sweep import FakeSweep

from hpc import purge, status, status_look
from hpc.paths import Submission, Submissions

DAY = 86_400


@pytest.fixture
def sweep(tmp_path: Path) -> FakeSweep:
    made = FakeSweep(tmp_path / "runs", seeds=1).finish_all()
    made.folder.sweep_yaml.write_text("name: demo\n")
    site = {"name": "nyu", "purge_days": 60, "runs_dir": str(tmp_path / "runs")}
    entry = Submission(id="0001", created=0, code="0001", mode="local", tasks=tuple(made.plan.tasks), state="done", site=site)
    Submissions().with_entry(entry).write(made.folder)
    for arm in ("baseline", "se"):
        made.of(arm, 0).log.write_text("begun\n")
    return made


def change_site(sweep: FakeSweep, **keys: object) -> None:
    (entry,) = Submissions.read(sweep.folder).submissions
    Submissions().with_entry(replace(entry, site={**entry.site, **keys})).write(sweep.folder)


def age(path: Path, days: float, *, opened: float | None = None) -> None:
    """Changed so many days ago; opened: the last access, if that was later."""
    now = time.time()
    os.utime(path, (now - DAY * (days if opened is None else opened), now - DAY * days))


def test_nothing_is_said_of_files_that_were_opened_lately(sweep: FakeSweep) -> None:
    for path in sweep.of("se", 0).path.rglob("*"):
        age(path, 300, opened=10)
    assert status_look.take(sweep.folder).purge == ()


@pytest.mark.parametrize(("days", "is_warned"), [(45.5, False), (46.5, True), (59, True), (80, True)])
def test_it_warns_from_14_days_before(sweep: FakeSweep, days: float, is_warned: bool) -> None:
    age(sweep.of("se", 0).log, days)
    assert bool(status_look.take(sweep.folder).purge) == is_warned


def test_the_line_names_runs_dates_and_the_remedy(sweep: FakeSweep, capsys: pytest.CaptureFixture[str]) -> None:
    age(next(sweep.of("se", 0).checkpoints.iterdir()), 50)
    age(sweep.of("baseline", 0).log, 61)
    slugs = [sweep.plan.runs[sweep.ids[arm, 0]].slug for arm in ("baseline", "se")]
    when = time.strftime("%a %d %b", time.localtime(time.time() + 10 * DAY))
    status.main([str(sweep.folder.path)])
    wanted = f"warning: nyu removes what nobody has opened for 60 days: {slugs[0]} any time now, {slugs[1]} from {when} on. Keep it: "
    assert f"{wanted}python -m hpc.archive {sweep.folder.path} --output ELSEWHERE/demo.tar\n" in capsys.readouterr().out
    status.main([str(sweep.folder.path), "--json"])
    assert len(json.loads(capsys.readouterr().out)["purge"]) == 1


@pytest.mark.parametrize("keys", [{"purge_days": None}, {"purge_days": "60"}, {"runs_dir": "/nowhere/runs"}, {"runs_dir": "/proc"}])
def test_a_site_that_purges_nothing_or_is_elsewhere_is_no_reason_to_warn(sweep: FakeSweep, keys: dict[str, object]) -> None:
    age(sweep.of("se", 0).log, 100)
    change_site(sweep, **keys)
    assert status_look.take(sweep.folder).purge == ()


def test_a_look_changes_no_time_and_is_taken_once_an_hour(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    log = sweep.of("se", 0).log
    age(log, 50)
    before, looks, real = log.stat().st_atime_ns, [], purge.warnings
    monkeypatch.setattr(purge, "warnings", lambda *args: looks.append(1) or real(*args))
    memory = status_look.Memory()
    for _ in range(3):
        assert len(status_look.take(sweep.folder, memory).purge) == 1
    assert len(looks) == 1 and log.stat().st_atime_ns == before
