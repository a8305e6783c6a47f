"""The forms of the table: LaTeX that compiles whatever arms are called, JSON and CSV with every digit, groups, metrics, terminals."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_sweep import ARMS, FakeSweep
from rich.console import Console
from scipy import stats as reference

from hpc import collect
from hpc.comparison import Comparison, compare
from hpc.gather import gather
from hpc.metrics import METRICS
from hpc.table_data import csv_text, json_text
from hpc.table_latex import escape, latex
from hpc.table_screen import print_table
from hpc.tables import columns, markdown, size_text
from seresnet.config import ModelConfig
from seresnet.errors import ConfigError

#: Every command that table.tex may use, and how many arguments in braces follow it.
COMMANDS = {
    "begin": 1, "end": 1, "centering": 0, "caption": 1, "label": 1, "toprule": 0, "midrule": 0, "bottomrule": 0, "pm": 0, ",": 0,
    "textbackslash": 1, "textasciitilde": 1, "textasciicircum": 1, "textless": 1, "textgreater": 1, "textbar": 1, "textquotedbl": 1,
}  # fmt: skip


def check_latex(text: str) -> list[list[str]]:
    """Raise AssertionError for what pdflatex would stumble over; the cells of the tabular."""
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    bare = re.sub(r"\\[&%$#_{}]|\\\\", "", code)  # escaped letters, ends of rows
    depth, stack = 0, []
    for token in re.finditer(r"\\([a-zA-Z]+|.)|[{}]", bare):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        assert depth >= 0, f"a brace is closed that was not opened: {bare[: token.end()][-60:]}"
        if token[1]:
            assert token[1] in COMMANDS, f"unknown command {token[0]}"
            assert not COMMANDS[token[1]] or bare[token.end()] == "{", f"no argument: {bare[token.start() :][:30]}"
        if token[1] == "begin":
            stack.append(re.match(r"\{(\w+)\}", bare[token.end() :])[1])  # type: ignore[index]
        if token[1] == "end":
            assert bare[token.end() :].startswith(f"{{{stack.pop()}}}"), "environments cross"
    assert depth == 0 and not stack
    assert bare.count("$") % 2 == 0
    outside = re.sub(r"\$[^$]*\$|\\(label|begin|end)\{[^}]*\}", "", bare)
    assert not re.search(r"[_^#~%]", outside), re.search(r"[_^#~%].*", outside)
    assert all(letter.isascii() or letter.isalpha() for letter in bare), "a letter that pdflatex does not know"
    body = code.partition("\\toprule\n")[2].partition("\\bottomrule")[0].replace("\\midrule\n", "")
    rows = [line.strip().removesuffix("\\\\").strip() for line in body.splitlines() if line.strip()]
    assert all(line.rstrip().endswith("\\\\") for line in body.splitlines() if line.strip())
    cells = [re.split(r"(?<!\\)&", row) for row in rows]
    width = len(re.search(r"\{tabular\}\{([lr]+)\}", code)[1])  # type: ignore[index]
    assert {len(row) for row in cells} == {width}, [len(row) for row in cells]
    return [[cell.strip() for cell in row] for row in cells]


def compared(root: Path, **more: object) -> Comparison:
    return compare(gather([FakeSweep(root, seeds=3).finish_all().folder.path]), **more)  # type: ignore[arg-type]


def test_latex_has_the_numbers_of_the_table(tmp_path: Path) -> None:
    comparison = compared(tmp_path)
    head, *rows = check_latex(latex(comparison))
    assert head[:4] == ["arm", "parameters", "multiply-adds", "$n$"] and [row[0] for row in rows] == ["baseline", "se"]
    for row, arm in zip(rows, comparison.arms, strict=True):
        assert arm.last is not None and row[4] == f"${arm.last.mean:.2f} \\pm {arm.last.std:.2f}$"


def test_latex_compiles_whatever_an_arm_is_called(tmp_path: Path) -> None:
    nasty = r"100% of $x_1$ & {a}^2 ~ \input{/etc} <b> | #1 ✓ é 'q' " + '"r"'
    sweep = FakeSweep(tmp_path, seeds=2, arms={"base_line": ModelConfig(width=16), nasty: ModelConfig(width=8)}).finish_all()
    rows = check_latex(latex(compare(gather([sweep.folder.path]), title="a_b % \\ sweep")))
    assert [row[0] for row in rows[1:]] == [r"base\_line", escape(nasty)]
    assert escape("✓ é\n%") == r"[U+2713] é \%"


def test_a_caption_is_two_lines_of_print_and_the_rest_stands_in_comments(tmp_path: Path) -> None:
    text = latex(compared(tmp_path))
    said = re.search(r"\\caption\{(.*)\}\n", text)
    assert said is not None and said[1] == (
        "demo. Test accuracy on CIFAR-10 (JPEG) (1,000 test images), mean $\\pm$ sample standard deviation over n seeds;"
        " difference to baseline at equal seeds [95 \\% interval of the paired t-test]."
        " Best-on-test chose its epoch on the test set, so it is biased upwards."
    )
    comments = [line for line in text.splitlines() if line.startswith("% ")]
    for word in ("Data: ", "Hardware: ", "Numbers: ", "Difference: ", "Cost: "):
        assert any(line.startswith(f"% {word}") for line in comments), word


def test_a_partial_table_says_so_in_its_caption(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=2)
    sweep.finish("se", 0)
    text = latex(compare(gather([sweep.folder.path])))
    check_latex(text)
    assert "\\caption{demo. PARTIAL: 1 of 4 runs finished (3 new)." in text and text.startswith("% PARTIAL")


def test_json_has_every_digit_and_the_test_by_name(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=4)
    results = {key: sweep.finish(*key) for key in sweep.ids}
    found = json.loads(json_text(compare(gather([sweep.folder.path]))))
    ours, theirs = ([results[arm, seed].last_test_top1_pct for seed in range(4)] for arm in ("se", "baseline"))
    expected = reference.ttest_rel(ours, theirs)
    interval = expected.confidence_interval(0.95)
    difference = found["arms"][1]["difference"]
    assert (difference["pairs"], difference["degrees_of_freedom"]) == (4, expected.df)
    assert [difference[key] for key in ("mean", "low", "high")] == pytest.approx(
        [np.mean(np.subtract(ours, theirs)), interval.low, interval.high], rel=1e-12
    )
    assert found["difference"]["test"].startswith("two-sided paired t-test") and found["schema"] == 1
    assert [run["state"] for run in found["runs"]] == ["finished"] * 8


def test_csv_has_a_row_an_arm_that_pandas_and_a_spreadsheet_read_alike(tmp_path: Path) -> None:
    comparison = compared(tmp_path)
    rows = list(csv.DictReader(io.StringIO(csv_text(comparison))))
    assert [row["arm"] for row in rows] == ["baseline", "se"]
    for row, arm in zip(rows, comparison.arms, strict=True):
        assert arm.best_on_test is not None and float(row["best_on_test_top1_pct_mean"]) == arm.best_on_test.mean
        assert (int(row["n"]), row["states"]) == (3, "3 finished")


def test_only_the_table_is_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = FakeSweep(tmp_path, seeds=1).finish_all()
    collect.main([str(sweep.folder.path), "--no-figures", "--format", "csv"])
    said = capsys.readouterr()
    assert len(list(csv.reader(io.StringIO(said.out)))) == 3
    assert "Complete: 2 of 2 runs finished." in said.err and "ONE RUN: baseline, se have" in said.err


# --- --metric ---


@pytest.mark.parametrize("name", ["last_test_loss", "train_loss", "last_val_top1_pct", "val_chosen_epoch", "best_on_test_epoch"])
def test_a_chosen_metric_is_the_mean_of_the_results_and_what_the_difference_is_of(tmp_path: Path, name: str) -> None:
    sweep = FakeSweep(tmp_path, seeds=3)
    results = {key: sweep.finish(*key) for key in sweep.ids}
    comparison = compare(gather([sweep.folder.path]), metrics=[name])
    values = {arm: np.array([getattr(results[arm, seed], name) for seed in range(3)]) for arm in ARMS}
    summary = comparison.arms[1]
    found = summary.metrics[name]
    assert found is not None and (found.mean, found.std) == pytest.approx((values["se"].mean(), values["se"].std(ddof=1)))
    assert summary.difference is not None and summary.difference.mean == pytest.approx((values["se"] - values["baseline"]).mean())
    heading = METRICS[name].heading
    assert [column.name for column in columns(comparison)][4:6] == [heading, f"difference of {heading}"]


def test_metrics_are_columns_in_the_order_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    collect.main([str(sweep.folder.path), "--no-figures", "--metric", "train_loss,last_test_top1_pct"])
    head = capsys.readouterr().out.splitlines()[4]
    assert [name.strip() for name in head.split("|")][5:8] == ["train loss", "last epoch", "difference of train loss"]


def test_an_unknown_metric_is_told_the_valid_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    assert collect.main([str(sweep.folder.path), "--no-figures", "--metric", "last_test_top1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "--metric last_test_top1: there is no such metric. Did you mean last_test_top1_pct? Metrics: last_test_top1_pct, "
    )
    assert all(name in said for name in METRICS)


# --- --by ---


def grid(root: Path, seeds: int = 2) -> FakeSweep:
    """Two widths with and without SE, as four arms."""
    arms = {f"{name} {width}": ModelConfig(width=width, attention=name) for name in ("none", "se") for width in (8, 16)}  # type: ignore[arg-type]
    return FakeSweep(root, arms=arms, seeds=seeds)


def test_by_groups_finished_and_unfinished_runs_by_their_configs(tmp_path: Path) -> None:
    sweep = grid(tmp_path)
    results = {key: sweep.finish(*key) for key in list(sweep.ids)[:-1]}
    comparison = compare(gather([sweep.folder.path]), by=["model.attention"])
    assert [arm.arm for arm in comparison.arms] == ["model.attention=none", "model.attention=se"]
    se = comparison.arms[1]
    assert se.last is not None and se.states == (("finished", 3), ("new", 1))
    expected = [result.last_test_top1_pct for (arm, _), result in results.items() if arm.startswith("se")]
    assert se.last.mean == pytest.approx(np.mean(expected))


def test_by_several_keys_pairs_by_seed_with_a_baseline_of_the_same_form(tmp_path: Path) -> None:
    sweep = grid(tmp_path)
    results = {key: sweep.finish(*key) for key in sweep.ids}
    wanted = "model.width=16, model.attention=none"
    comparison = compare(gather([sweep.folder.path]), wanted, by=["model.width", "model.attention"])
    differences = {arm.arm: arm.difference for arm in comparison.arms}
    found = differences["model.width=16, model.attention=se"]
    pairs = [results["se 16", seed].last_test_top1_pct - results["none 16", seed].last_test_top1_pct for seed in (0, 1)]
    assert found is not None and found.pairs == 2 and found.mean == pytest.approx(np.mean(pairs))


def test_by_a_key_that_is_not_set_says_unset_and_a_lost_config_is_a_row(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    sweep.of("se", 1).run_yaml.unlink()
    sweep.of("se", 1).result.unlink()
    comparison = compare(gather([sweep.folder.path]), by=["optim.schedule_epochs", "model.blocks"])
    assert [arm.arm for arm in comparison.arms] == ["optim.schedule_epochs=unset, model.blocks=[4, 4, 3]", "config unknown"]
    assert sum(count for arm in comparison.arms for _, count in arm.states) == 4


def test_by_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    gathered = gather([FakeSweep(tmp_path).finish_all().folder.path])
    with pytest.raises(ConfigError, match=r"--by model.atention: no config has this key. Did you mean model.attention\?"):
        compare(gathered, by=["model.atention"])
    with pytest.raises(ConfigError, match=r"--by arm: it stands for no key of a config.*leave --by away"):
        compare(gathered, by=["arm", "model.attention"])


def test_by_a_run_of_two_sweeps_counts_once(tmp_path: Path) -> None:
    sweeps = [FakeSweep(tmp_path, name=name, seeds=2) for name in ("one", "two")]
    sweeps[1].finish_all()
    comparison = compare(gather([sweep.folder.path for sweep in sweeps]), by=["model.attention"])
    assert [(arm.n, arm.states) for arm in comparison.arms] == [(2, (("finished", 2),))] * 2
    assert comparison.arms[1].difference is not None and comparison.arms[1].difference.pairs == 2


def test_the_default_baseline_of_groups_is_that_of_the_baseline_arm(tmp_path: Path) -> None:
    arms = {"se": ModelConfig(width=16, attention="se"), "baseline": ModelConfig(width=16)}
    comparison = compare(gather([FakeSweep(tmp_path, arms=arms).finish_all().folder.path]), by=["model.attention"])
    assert comparison.baseline == "model.attention=none"


# --- cost, kinds of devices, terminals ---


def test_hours_are_named_after_the_devices_that_were_held(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1).finish_all()
    for arm in ARMS:
        sweep.lasted(arm, 0, 2.0)
    gathered = gather([sweep.folder.path])
    on_gpu = [replace(row, config={**(row.config or {}), "train": {"device": "cuda", "seed": 0}}) for row in gathered.rows[1:]]
    names = {}
    for kind, rows in (("cpu", gathered.rows), ("gpu", on_gpu), ("both", [gathered.rows[0], *on_gpu])):
        shown = columns(compare(replace(gathered, rows=tuple(rows))))
        names[kind] = next(column.name for column in shown if "hours" in column.name)
    assert names == {"cpu": "CPU core-hours", "gpu": "GPU-hours", "both": "device-hours"}


@pytest.mark.parametrize(("number", "text"), [(999, "999"), (1_000, "1.000 k"), (697_654_321, "697.7 M"), (1_234_567_890, "1.235 G")])
def test_multiply_adds_have_four_digits(number: int, text: str) -> None:
    assert size_text(number) == text


@pytest.mark.parametrize("width", [80, 100, 130, 160, 200])
def test_every_column_is_on_the_terminal_or_named_as_left_out(tmp_path: Path, width: int) -> None:
    comparison = compared(tmp_path, metrics=["last_test_top1_pct", "last_test_loss", "train_loss", "last_val_top1_pct"])
    screen = io.StringIO()
    print_table(comparison, Console(file=screen, width=width, force_terminal=True, color_system=None))
    text = screen.getvalue()
    table = text.partition("Data: ")[0]
    assert max(map(len, text.splitlines())) <= width
    left_out = " ".join(table.split()).partition("columns for ")[2].partition(": table.md")[0].split(", ")
    for column in columns(comparison):
        cells = [cell.split()[0] for cell in column.cells]
        assert column.name in left_out or all(cell.rstrip(",") in table for cell in cells), column.name


def test_the_page_is_one_line_an_entry_whatever_records_say(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path)
    sweep.attempt("se", 0, "crashed", "<script>\n# heading | \x1b[31mred")
    text = markdown(compare(gather([sweep.folder.path])))
    assert "- se-seed0" in text and "&lt;script> # heading | \\x1b[31mred" in text
