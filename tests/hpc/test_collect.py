"""From run folders to table and CSV: right numbers, every run a row, the same bytes, and no file believed that should not be."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from fake_sweep import FakeSweep, in_every_state, record
from rich.console import Console

from hpc import collect
from hpc.comparison import Comparison
from hpc.gather import gather
from hpc.states import Queue, run_states
from hpc.table_screen import print_table
from hpc.tables import headline, problem_lines
from seresnet import journal

GOLDEN = Path(__file__).parent.parent / "golden"


def mixed_sweep(root: Path) -> FakeSweep:
    """Six runs: three finished, of them one elsewhere; one crashed, one running, one never started."""
    sweep = FakeSweep(root, seeds=3)
    sweep.finish("baseline", 0, multiply_adds=11_345_678)
    sweep.finish("baseline", 1, multiply_adds=11_345_678)
    sweep.finish("se", 0, device="cuda: NVIDIA H100", tier="T2")
    sweep.train("se", 1, range(1, 4))
    sweep.attempt("se", 1, "crashed", "RuntimeError: expected scalar type\nFloat")
    for arm, seed, hours in (("baseline", 0, 1.5), ("baseline", 1, 2.25), ("se", 1, 0.125)):
        sweep.lasted(arm, seed, hours)
    sweep.train("se", 2, range(1, 3))
    sweep.attempt("se", 2, "preempted", generation=1)
    sweep.attempt("se", 2, generation=2)
    return sweep


def collect_text(sweep: FakeSweep) -> Comparison:
    comparison, _ = collect.collect([sweep.folder.path], with_figures=False)
    return comparison


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("table.md", "runs.csv")} | {
        path.name: path.read_bytes() for path in (folder / "figures").glob("*.png")
    }


@pytest.mark.parametrize("form", ["md", "csv", "latex", "json"])
def test_every_form_is_the_golden_one_on_stdout_and_in_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    sweep = mixed_sweep(tmp_path)
    assert collect.main([str(sweep.folder.path), "--no-figures", "--format", form]) == 0
    name = collect.FORMATS[form]
    golden = (GOLDEN / f"collect_{name}").read_text()
    assert (sweep.folder.path / name).read_text() == golden
    assert capsys.readouterr().out == golden


def test_the_csv_of_runs_is_the_golden_one(tmp_path: Path) -> None:
    sweep = mixed_sweep(tmp_path)
    collect_text(sweep)
    assert (sweep.folder.path / "runs.csv").read_text() == (GOLDEN / "collect_runs.csv").read_text()


def test_a_form_that_is_there_already_is_never_older_than_the_table(tmp_path: Path) -> None:
    sweep = mixed_sweep(tmp_path)
    collect.collect([sweep.folder.path], with_figures=False, form="json")
    sweep.finish("se", 1)
    _, written = collect.collect([sweep.folder.path], with_figures=False)
    assert [path.name for path in written] == ["table.md", "table.json", "runs.csv"]
    assert "4 of 6 runs finished" in (sweep.folder.path / "table.json").read_text()


def raw_run(folder: Path) -> dict[str, float | str]:
    """One run by json alone: none of our readers."""
    found = json.loads((folder / "result.json").read_text())
    yaml_text = (folder / "run.yaml").read_text()
    number = {key: int(yaml_text.split(f"    {key}: ")[1].split()[0]) for key in ("seed", "ranks", "threads")}
    claims = sorted(path for path in folder.glob("attempts/*.json") if path.stem.isdigit())
    ends = [json.loads(path.with_suffix(".end.json").read_text())["time"] for path in claims]
    held = sum(end - json.loads(path.read_text())["owner"]["started"] for path, end in zip(claims, ends, strict=True))
    epochs = pd.DataFrame([json.loads(line) for path in folder.glob("metrics/*") for line in path.read_text().splitlines()])
    return {
        **{key: found[key] for key in ("last_test_top1_pct", "val_chosen_test_top1_pct", "best_on_test_top1_pct")},
        "arm": found["slug"].rpartition("-seed")[0],
        "seed": number["seed"],
        "hours": held * number["ranks"] * number["threads"] / 3600,
        "restarts": len(claims) - 1,
        "epoch_s": epochs.sort_values("generation").drop_duplicates("step", keep="last")["seconds"].median(),
    }


def interrupted_sweep(root: Path) -> FakeSweep:
    """Ten finished runs that took one to three attempts each, of different length."""
    sweep = FakeSweep(root, seeds=5)
    for number, key in enumerate(sweep.ids):
        sweep.finish(*key)
        for generation in range(1, 2 + number % 3):
            sweep.attempt(*key, "finished", generation=generation, hours=1 + number / 7)
        if number % 2:
            journal.append(sweep.of(*key), replace(record(*key, epoch=2, epochs=6, generation=2), seconds=4.0 + number))
    return sweep


def test_numbers_equal_an_independent_pandas_computation_from_raw_files(tmp_path: Path) -> None:
    sweep = interrupted_sweep(tmp_path)
    comparison = collect_text(sweep)
    raw = pd.DataFrame([raw_run(path.parent) for path in sweep.folder.path.glob("*/result.json")])
    rows = pd.DataFrame(
        [(row.arms[0], row.device_hours, row.restarts, row.history.seconds_per_epoch) for row in comparison.gathered.rows],
        columns=["arm", "hours", "restarts", "epoch_s"],
    )
    pd.testing.assert_frame_equal(
        rows.groupby("arm").agg(["mean", "sum"]), raw[["arm", "hours", "restarts", "epoch_s"]].groupby("arm").agg(["mean", "sum"])
    )
    wide = raw.pivot(index="seed", columns="arm", values="last_test_top1_pct")
    change = wide["se"] - wide["baseline"]
    text = (sweep.folder.path / "table.md").read_text()
    assert f"{change.mean():+.2f} [" in text and ", 5 pairs" in text
    for name, runs in raw.groupby("arm"):
        line = next(line for line in text.splitlines() if line.startswith(f"| {name} "))
        for key in ("last_test_top1_pct", "val_chosen_test_top1_pct", "best_on_test_top1_pct"):
            assert f"{runs[key].mean():.2f} ± {runs[key].std():.2f}" in line, key


def test_order_of_creation_changes_no_byte(tmp_path: Path) -> None:
    forward = FakeSweep(tmp_path / "a").finish_all()
    backward = FakeSweep(tmp_path / "b")
    folders = {key: backward.of(*key).path for key in backward.ids}
    for folder in folders.values():
        folder.rename(folder.with_suffix(".away"))
    for folder in reversed(folders.values()):
        folder.with_suffix(".away").rename(folder)
    for key in reversed(backward.ids):
        backward.finish(*key)
    collect.collect([forward.folder.path], figure_formats=("png",))
    collect.collect([backward.folder.path], figure_formats=("png",))
    first = outputs(forward.folder.path)
    assert len(first) == 7 and first == outputs(backward.folder.path)


def test_every_planned_run_is_a_row_of_the_csv(tmp_path: Path) -> None:
    sweep = mixed_sweep(tmp_path)
    shutil.rmtree(sweep.of("baseline", 2).path)
    collect_text(sweep)
    frame = pd.read_csv(sweep.folder.path / "runs.csv")
    assert list(frame["state"]) == ["finished", "finished", "new", "finished", "failed", "lost"]
    assert frame["reason"][2] == "its folder is gone"
    assert frame["reason"][4] == "RuntimeError: expected scalar type Float"
    assert frame["reason"][5] == "attempt 2 has not ended, or nobody could write how"


@pytest.mark.parametrize(
    ("ending", "state"),
    [
        ("preempted", "stopped"),
        ("timed_out", "stopped"),
        ("node_failed", "stopped"),
        ("stopped", "stopped"),
        ("finished", "stopped"),  # without a result.json
        ("user_error", "failed"),
        ("out_of_memory", "failed"),
        ("hung", "failed"),
        ("killed", "failed"),
        ("diverged", "failed"),
        ("cancelled", "cancelled"),
        ("cancelled_by_site", "cancelled"),
    ],
)
def test_state_of_a_run_without_result_follows_its_newest_ending(tmp_path: Path, ending: str, state: str) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    sweep.attempt("se", 0, "crashed", generation=1)
    sweep.attempt("se", 0, ending, generation=2)
    row = gather([sweep.folder.path]).rows[1]
    assert (row.state, row.ending) == (state, ending)


def test_first_line_says_partial_and_mixed(tmp_path: Path) -> None:
    first = headline(gather([mixed_sweep(tmp_path).folder.path]))
    assert first.startswith("PARTIAL: 3 of 6 runs finished (1 failed, 1 lost, 1 new).")
    assert "MIXED devices: cpu: AMD EPYC 9R14; cuda: NVIDIA H100." in first and "MIXED tiers: T1; T2." in first


def test_first_line_of_a_complete_uniform_sweep_is_quiet(tmp_path: Path) -> None:
    assert headline(gather([FakeSweep(tmp_path).finish_all().folder.path])) == "Complete: 4 of 4 runs finished."


def test_mixed_code_is_said_on_the_first_line(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    sweep.finish("se", 1, code_digest="0000111122223333")
    assert headline(gather([sweep.folder.path])).endswith("MIXED code versions: 00001111; abcd1234.")


def test_a_diverged_run_is_counted_apart_from_other_failures(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    for seed, ending in enumerate(("crashed", "diverged")):
        sweep.of("se", seed).result.unlink()
        sweep.attempt("se", seed, ending, "because of a test", generation=2)
    gathered = gather([sweep.folder.path])
    assert headline(gathered).startswith("PARTIAL: 2 of 4 runs finished (1 failed, 1 failed: diverged).")
    assert [line.split(": ", 1)[1] for line in problem_lines(gathered)] == [
        "failed: crashed: because of a test",
        "failed: diverged: because of a test",
    ]


def test_the_table_and_status_call_a_run_the_same(tmp_path: Path) -> None:
    """Without a scheduler, which the table does not ask."""
    sweep, _ = in_every_state(tmp_path)
    rows = gather([sweep.folder.path]).rows
    states = run_states(sweep.folder, sweep.plan, Queue())
    assert [(row.slug, row.state, row.ending) for row in rows] == [(state.slug, state.state, state.ending) for state in states]
    assert len({row.state for row in rows}) == 8


def test_a_raised_number_of_epochs_asks_for_an_extension(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1).finish_all()
    sweep.finish("se", 0, epochs=5)
    row = gather([sweep.folder.path]).rows[1]
    assert (row.state, row.result) == ("extend", None)
    assert row.reason == "has a result of 5 epochs, run.yaml asks for 6"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def edit(**changes: object) -> Callable[[Path], None]:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes)) and None


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (truncate, "not a result of this version"),
        (edit(schema=99), "schema is 99: a newer version wrote it"),
        (edit(run_id="0" * 12), "belongs to run '000000000000'"),
        (edit(last_test_top1_pct="91.5"), "wrong type or not finite: last_test_top1_pct"),
        (edit(last_test_top1_pct=float("nan")), "wrong type or not finite: last_test_top1_pct"),
        (edit(best_on_test_top1_pct=912.0), "best_on_test_top1_pct is 912.0, not a percentage"),
        (edit(confusion=[[1, 2]]), "confusion is not 10 x 10"),
    ],
)
def test_a_damaged_result_is_named_and_its_run_not_counted(tmp_path: Path, damage: Callable[[Path], None], why: str) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    damage(sweep.of("se", 1).result)
    gathered = gather([sweep.folder.path])
    assert [row.state for row in gathered.rows] == ["finished", "finished", "finished", "failed"]
    assert gathered.rows[3].ending == "unreadable"
    assert len(gathered.skipped) == 1, gathered.skipped
    assert gathered.skipped[0].startswith(f"{sweep.of('se', 1).path.name}/result.json: ") and why in gathered.skipped[0]
    assert str(tmp_path) not in gathered.skipped[0]


def test_a_torn_journal_line_is_named_and_costs_no_other_line(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    truncate(sweep.of("se", 1).journal(1))
    gathered = gather([sweep.folder.path])
    assert gathered.skipped == (f"{sweep.of('se', 1).path.name}/metrics/g0001.jsonl: 1 torn or foreign line",)
    assert [len(row.history) for row in gathered.rows] == [6, 6, 6, 5]


def test_a_run_folder_that_nobody_planned_is_named_and_skipped(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    shutil.copytree(sweep.of("se", 1).path, sweep.folder.path / "se-copy-0123456789ab")
    gathered = gather([sweep.folder.path])
    assert gathered.skipped == ("se-copy-0123456789ab: a run that is not in plan.json",)
    assert len(gathered.rows) == 4


def test_several_sweeps_need_an_output_and_show_arms_with_their_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(FakeSweep(tmp_path, name=name).finish_all().folder.path) for name in ("one", "two")]
    assert collect.main(paths) == 2
    assert capsys.readouterr().err == "several sweeps: say where the table goes with --output DIR.\n"
    assert collect.main([*paths, "--no-figures", "--output", str(tmp_path / "both"), "--baseline", "two/se"]) == 0
    table = capsys.readouterr().out
    assert all(f"| {arm} " in table for arm in ("one/baseline", "one/se", "two/baseline", "two/se"))
    assert "last epoch minus two/se" in table and (tmp_path / "both" / "runs.csv").exists()


def test_a_run_that_two_sweeps_finished_with_the_same_bits_is_listed_once_in_the_arms_of_both(tmp_path: Path) -> None:
    one, two = (FakeSweep(tmp_path, name=name).finish_all() for name in ("one", "two"))
    two.of("se", 1).result.unlink()
    two.attempt("se", 1, "crashed", "because of a test", generation=2)
    gathered = gather([one.folder.path, two.folder.path])
    assert [(row.sweep, row.state, row.arms) for row in gathered.rows] == [
        ("one", "finished", ("one/baseline", "two/baseline")),
        ("one", "finished", ("one/baseline", "two/baseline")),
        ("one", "finished", ("one/se", "two/se")),
        ("one", "finished", ("one/se",)),
        ("two", "failed", ("two/se",)),
    ]
    assert [len(gathered.of_arm(arm)) for arm in gathered.arms] == [2, 2, 2, 2] and gathered.skipped == ()


def test_a_run_that_two_sweeps_finished_with_different_bits_stays_two_and_is_named(tmp_path: Path) -> None:
    one, two = (FakeSweep(tmp_path, name=name).finish_all() for name in ("one", "two"))
    two.finish("se", 1, state_digest="f" * 64)
    gathered = gather([one.folder.path, two.folder.path])
    assert [row.arms for row in gathered.rows if row.run_id == one.ids["se", 1]] == [("one/se",), ("two/se",)]
    slug = one.plan.runs[one.ids["se", 1]].slug
    told = f"{slug} ({one.ids['se', 1]}): finished in one, two with different bits: each counts in its own sweep"
    assert gathered.skipped == (told,)


def test_the_same_sweep_given_twice_counts_once(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    comparison, _ = collect.collect([sweep.folder.path, tmp_path / "." / "demo"], with_figures=False)
    assert [arm.n for arm in comparison.arms] == [2, 2]


@pytest.mark.parametrize("width", [80, 200])
def test_terminal_table_fits_and_loses_nothing(tmp_path: Path, width: int) -> None:
    comparison = collect_text(mixed_sweep(tmp_path))
    screen = io.StringIO()
    print_table(comparison, Console(file=screen, width=width, force_terminal=True, color_system=None))
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("PARTIAL: 3 of 6 runs finished")
    for arm in comparison.arms:
        assert arm.last is not None and any(f"{arm.last.mean:.2f}" in line and arm.arm in line for line in lines)
    assert any("1 lost" in line for line in lines), "the states"
    is_there = any("0.12" in line for line in lines)  # hours of se
    assert is_there or any("No room at 80 columns for" in line and "CPU core-hours" in line for line in lines)
    warned = lines[lines.index("Warnings") + 1 :]
    below = warned[: warned.index("") if "" in warned else None]
    assert len(below) > 1 and all(line.startswith("  ") for line in below), "what is folded would look like another entry"


def test_piped_output_is_the_markdown_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = mixed_sweep(tmp_path)
    assert collect.main([str(sweep.folder.path), "--no-figures"]) == 0
    assert capsys.readouterr().out == (sweep.folder.path / "table.md").read_text()


def test_a_folder_that_is_no_sweep_and_an_unknown_arm_end_with_two_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert collect.main([str(tmp_path)]) == 2
    assert "plan.json" in capsys.readouterr().err
    sweep = FakeSweep(tmp_path).finish_all()
    assert collect.main([str(sweep.folder.path), "--baseline", "sse"]) == 2
    assert capsys.readouterr().err == "--baseline sse: is no arm here. Arms: baseline, se.\n"


def test_nothing_finished_still_makes_a_table(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path)
    _, written = collect.collect([sweep.folder.path])
    assert (sweep.folder.path / "table.md").read_text().startswith("PARTIAL: 0 of 4 runs finished (4 new).")
    assert [path.name for path in written] == ["table.md", "runs.csv", "report.html"]


def run_python(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("missing", ["pandas", "matplotlib"])
def test_a_missing_extra_gets_one_line(tmp_path: Path, missing: str) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    code = f"""import sys, importlib.abc
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {missing!r}: raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from hpc import collect
sys.exit(collect.main(sys.argv[1:]))"""
    done = run_python(code, str(sweep.folder.path))
    advice = "Use the Python of the training environment (make setup): it has all that tables and figures need."
    assert (done.returncode, done.stderr) == (2, f"{missing} is not installed here. {advice}\n")


def test_a_sweep_that_cannot_be_written_into_needs_another_place_for_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = FakeSweep(tmp_path, epochs=2).finish_all()

    def refuse(path: Path, text: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(collect, "write_durably", refuse)
    assert collect.main([str(sweep.folder.path), "--no-figures"]) == 2
    assert capsys.readouterr().err == f"{sweep.folder.path / 'table.md'}: Permission denied. Correct that, or say --output DIR.\n"


def test_collecting_needs_no_torch_scipy_or_wandb(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, epochs=2).finish_all()
    code = """import sys
from hpc import collect
assert "pandas" not in sys.modules and "matplotlib" not in sys.modules, "--help would wait for them"
assert collect.main(sys.argv[1:]) == 0
print([name for name in ("torch", "scipy", "wandb", "submitit") if name in sys.modules], file=sys.stderr)"""
    done = run_python(code, str(sweep.folder.path))
    assert done.returncode == 0 and done.stderr.splitlines()[-1] == "[]", done.stderr
