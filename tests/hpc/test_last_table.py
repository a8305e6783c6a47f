"""The table that the task makes which ends the last run of a sweep: by whom, and that nothing of it reaches the task."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_sweep import FakeSweep

from hpc import last_table, locks, slurm, supervisor
from hpc.launch_text import made_tables
from hpc.paths import Submission, Submissions
from hpc.task import Job, Task, task_environment
from seresnet.signals import STOP_SIGNALS, StopFlag

PROGRAM = (sys.executable, str(Path(__file__).with_name("rank_program.py")), "{run_dir}")


@pytest.fixture(autouse=True)
def _made(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SERESNET_", last_table.SWITCH))]:
        monkeypatch.delenv(name)
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def task_of(sweep: FakeSweep, name: str = "0001/0", stop: StopFlag | None = None) -> Task:
    return Task(
        sweep=sweep.folder, name=name, plan=sweep.plan, job=Job(job_id=None), stop=stop or StopFlag(), series="x",
        code_dir=Path.cwd(), env=task_environment(os.environ, {}),
    )  # fmt: skip


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def is_made(sweep: FakeSweep, task: Task | None = None) -> bool:
    """Whether the task makes the table, a stand-in for it."""
    mark = sweep.folder.path / "made"
    mark.unlink(missing_ok=True)
    last_table.write_if_last(task or task_of(sweep), python(f"open({str(mark)!r}, 'w')"))
    return mark.exists()


def sent(sweep: FakeSweep, mode: str) -> None:
    entry = Submission(id="0001", created=0, code="0001", mode=mode, tasks=tuple(sweep.plan.tasks), job_id="7", state="submitted")  # type: ignore[arg-type]
    Submissions().with_entry(entry).write(sweep.folder)


def test_the_supervisor_of_the_last_task_leaves_the_table_and_no_other_does(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1, epochs=1)
    sweep.folder.logs.mkdir()
    sent(sweep, "local")
    table = sweep.folder.path / "table.md"
    with locks.holding(sweep.folder.local_lock("0001")):  # the launcher lives, and has the other task
        Submissions().write(sweep.folder)  # supervisors would look for a code snapshot
        sweep.train("se", 0, range(1, 2))
        sweep.attempt("se", 0)
        sweep.beat("se", 0)
        assert supervisor.run_task(sweep.folder, "0001/0", stop=StopFlag(), rank_command=PROGRAM, mirror_command=("true",)) == 0
        assert not table.exists()
    sweep.finish("se", 0)
    assert supervisor.run_task(sweep.folder, "0001/1", stop=StopFlag(), rank_command=PROGRAM, mirror_command=("true",)) == 0
    assert table.read_text().startswith("Complete: 2 of 2 runs finished.")


def test_runs_that_a_living_launcher_has_are_waited_for(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    sweep.finish("baseline", 0)
    sent(sweep, "local")
    sweep.folder.logs.mkdir()
    with locks.holding(sweep.folder.local_lock("0001")):
        assert not is_made(sweep)
    assert is_made(sweep), "the launcher is gone: nobody has the other run"


@pytest.mark.parametrize(("listed", "made"), [({}, True), (None, False), ("se", False), ("baseline", True)])
def test_runs_that_slurm_may_have_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: "dict[str, slurm.ListedJob] | str | None", made: bool
) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    sweep.finish("baseline", 0)
    sent(sweep, "slurm")
    if isinstance(listed, str):  # this task is listed, too, for as long as it runs
        place, name = ("baseline", "se").index(listed), f"demo-{sweep.plan.salt}-0001"
        listed = {f"7_{place}": slurm.ListedJob(job_id=f"7_{place}", name=name, state="PENDING", reason="None")}
    monkeypatch.setattr(slurm, "listed_jobs", lambda: listed)
    assert is_made(sweep) is made


def test_runs_that_failed_or_were_cancelled_have_nobody_and_hold_nothing_up(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=2)
    sweep.finish("baseline", 0)
    sweep.attempt("baseline", 1, "diverged", "loss is not finite")
    sweep.attempt("se", 0, "cancelled")
    sweep.attempt("se", 1, "user_error", "x")
    assert is_made(sweep)


def test_a_run_of_this_task_that_was_left_alone_holds_nothing_up(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    sweep.finish("se", 0)
    assert is_made(sweep, task_of(sweep, "0001/0")), "held or cancelled, and its task ends"


def test_a_task_that_was_told_to_stop_makes_none(tmp_path: Path) -> None:
    sweep, stop = FakeSweep(tmp_path).finish_all(), StopFlag()
    stop.signal_name = "SIGTERM"
    assert not is_made(sweep, task_of(sweep, stop=stop))


def test_off_makes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    monkeypatch.setenv(last_table.SWITCH, "off")
    assert not is_made(sweep)


def _lives(status: Path) -> bool:
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def test_a_stop_request_ends_it_at_once_with_everything_that_it_started(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sweep, stop = FakeSweep(tmp_path).finish_all(), StopFlag()
    grandchild = tmp_path / "pid"
    code = (
        f"import subprocess, time; p = subprocess.Popen(['sleep', '60']); open({str(grandchild)!r}, 'w').write(str(p.pid)); time.sleep(60)"
    )

    def stop_soon() -> None:
        while not grandchild.exists() or not grandchild.read_text():
            time.sleep(0.01)
        stop.signal_name = "SIGTERM"

    threading.Thread(target=stop_soon, daemon=True).start()
    began = time.monotonic()
    last_table.write_if_last(task_of(sweep, stop=stop), python(code))
    assert time.monotonic() - began < 20
    assert "reason=SIGTERM" in caplog.text
    status, limit = Path(f"/proc/{grandchild.read_text()}/stat"), time.monotonic() + 10  # of its 60 s; a kill takes a moment to arrive
    while _lives(status):
        assert time.monotonic() < limit, "what it started lives on"
        time.sleep(0.01)


def test_it_is_killed_at_its_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    began = time.monotonic()
    last_table.write_if_last(task_of(sweep), python("import time; time.sleep(60)"), limit_s=0.5)
    assert time.monotonic() - began < 20
    assert f"reason=it took more than 0 s; by hand: python -m hpc.collect {sweep.folder.path}" in caplog.text


def test_a_failure_is_one_line_with_its_reason_and_the_command(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    last_table.write_if_last(task_of(sweep), python("print('wait'); print('pandas is not installed here.'); raise SystemExit(2)"))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"table=incomplete reason=pandas is not installed here.; by hand: python -m hpc.collect {sweep.folder.path}"


@pytest.mark.parametrize("command", [("/does/not/exist",), None])
def test_what_cannot_be_started_or_read_is_one_warning_and_no_error(
    tmp_path: Path, command: tuple[str, ...] | None, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    if command is None:
        sweep.folder.plan.write_text("{")
    last_table.write_if_last(task_of(sweep), command)
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith("table=none error=") and ("plan.json" if command is None else "/does/not/exist") in line


def test_two_tasks_of_which_neither_succeeds_try_one_after_the_other(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1).finish_all()
    times = tmp_path / "times"
    code = (
        f"import time; a = time.monotonic(); time.sleep(0.3); open({str(times)!r}, 'a').write(f'{{a}} {{time.monotonic()}}\\n');"
        "raise SystemExit(1)"
    )
    tasks = [threading.Thread(target=last_table.write_if_last, args=(task_of(sweep, name), python(code))) for name in sweep.plan.tasks]
    for thread in tasks:
        thread.start()
    for thread in tasks:
        thread.join(30)
    (_, ended), (began, _) = sorted(tuple(map(float, line.split())) for line in times.read_text().splitlines())
    assert ended <= began


def stand_in(sweep: FakeSweep, *, fails: bool = False, seconds: float = 0.0) -> tuple[str, ...]:
    """Makes table.md and counts itself in a file `tables`, or fails after that."""
    path = sweep.folder.path
    code = f"import time; open({str(path / 'tables')!r}, 'a').write('x'); time.sleep({seconds}); "
    return python(code + ("raise SystemExit(1)" if fails else f"open({str(path / 'table.md')!r}, 'w')"))


def tables(sweep: FakeSweep) -> int:
    return len((sweep.folder.path / "tables").read_text())


def test_of_two_processes_that_end_at_once_one_makes_the_table_and_both_wait_for_it(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1).finish_all()
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from test_last_table import *;"
        "from hpc.paths import Plan, SweepFolder; sweep = FakeSweep.__new__(FakeSweep); sweep.folder = SweepFolder(Path(sys.argv[2]));"
        "sweep.plan = Plan.read(sweep.folder); last_table.write_if_last(task_of(sweep, sys.argv[3]), stand_in(sweep, seconds=1.0));"
        "raise SystemExit(not (sweep.folder.path / 'table.md').exists())"
    )
    arguments = [str(Path(__file__).parent), str(sweep.folder.path)]
    both = [subprocess.Popen([*python(script), *arguments, name], cwd=Path.cwd()) for name in sweep.plan.tasks]
    assert [process.wait(60) for process in both] == [0, 0]
    assert tables(sweep) == 1


def test_a_second_task_makes_it_again_if_the_first_failed_or_its_table_is_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sweep = FakeSweep(tmp_path, seeds=1).finish_all()
    caplog.set_level("INFO")
    for command, number in ((stand_in(sweep, fails=True), 1), (stand_in(sweep), 2), (stand_in(sweep), 2)):
        last_table.write_if_last(task_of(sweep), command)
        assert tables(sweep) == number
    assert caplog.messages[-1] == f"table={sweep.folder.path / 'table.md'} made_by=another task, of the same records"
    (sweep.folder.path / "table.md").unlink()
    last_table.write_if_last(task_of(sweep), stand_in(sweep))
    assert tables(sweep) == 3


def change_nothing(sweep: FakeSweep) -> None:
    pass


def end_another_attempt(sweep: FakeSweep) -> None:
    sweep.attempt("se", 0, "crashed", "x", generation=2)


def finish_with_other_numbers(sweep: FakeSweep) -> None:
    sweep.finish("se", 0, last_test_top1_pct=1.0)


def go_on_for_an_epoch(sweep: FakeSweep) -> None:
    sweep.train("se", 0, range(7, 8))


def plan_anew(sweep: FakeSweep) -> None:
    sweep.plan.write(sweep.folder)


@pytest.mark.parametrize(
    ("change", "number"),
    [(change_nothing, 1), (end_another_attempt, 2), (finish_with_other_numbers, 2), (go_on_for_an_epoch, 2), (plan_anew, 2)],
)
def test_any_record_that_changed_since_asks_for_another_table(tmp_path: Path, change: Callable[[FakeSweep], None], number: int) -> None:
    sweep = FakeSweep(tmp_path, seeds=1).finish_all()
    last_table.write_if_last(task_of(sweep), stand_in(sweep))
    change(sweep)
    last_table.write_if_last(task_of(sweep, "0001/1"), stand_in(sweep))
    assert tables(sweep) == number


def test_what_ends_while_a_table_is_made_asks_for_another(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1).finish_all()
    first = threading.Thread(target=last_table.write_if_last, args=(task_of(sweep), stand_in(sweep, seconds=1.0)))
    first.start()
    while not (sweep.folder.path / "tables").exists():
        time.sleep(0.01)
    sweep.finish("se", 0, last_test_top1_pct=1.0)
    last_table.write_if_last(task_of(sweep, "0001/1"), stand_in(sweep))
    first.join(30)
    assert tables(sweep) == 2


def test_in_a_job_nothing_is_written_under_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = FakeSweep(tmp_path, seeds=1, epochs=2).finish_all()
    home = tmp_path / "home"
    home.mkdir()
    for name, value in {"HOME": home, "SLURM_JOB_ID": 5, "SLURM_TMPDIR": tmp_path}.items():
        monkeypatch.setenv(name, str(value))
    for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    last_table.write_if_last(task_of(sweep))
    assert (sweep.folder.path / "figures" / "accuracy.png").exists(), (sweep.folder.logs / "table.txt").read_text()
    assert list(home.rglob("*")) == []


def test_a_local_launch_names_only_what_was_written_since_it_began(tmp_path: Path) -> None:
    for name, age in (("table.md", 0), ("report.html", 100)):
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    assert made_tables(tmp_path, 1e9) == [f"written: {tmp_path / 'table.md'}"]
    assert made_tables(tmp_path, 1e9 + 1) == []
