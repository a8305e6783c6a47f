"""report.html without a browser: what it says, that nothing in it is obeyed, that it is the same each time, and how large it gets."""

import base64
import hashlib
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from bokeh.plotting import figure
from fake_sweep import FakeSweep, record
from made_rows import history_of

import hpc
from hpc import bibliography, collect, figures, methods, report, report_series, report_view, settings
from hpc.comparison import Comparison
from hpc.comparison import compare as compared
from hpc.gather import Gathered, RunRow, gather
from hpc.history import COLUMNS

GOLDEN = Path(__file__).parent.parent / "golden"
EVIL = "\x1b]0;own\x07\u202e<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&{{7*7}}$x^2_@y{safe}`\\"


class Elements(HTMLParser):
    """Every element with its attributes, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data


def compare(runs: Gathered | FakeSweep, baseline: str | None = None, metrics: tuple[str, ...] = ()) -> Comparison:
    gathered = gather([runs.folder.path]) if isinstance(runs, FakeSweep) else runs
    return compared(gathered, baseline, metrics=metrics)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of two arms with three finished seeds."""
    return report.page(compare(FakeSweep(tmp_path_factory.mktemp("finished"), seeds=3).finish_all()))


def test_a_stranger_reads_what_was_compared_what_leads_by_how_much_and_how_sure(finished: str) -> None:
    text = " ".join(Elements(finished).text.split())
    last = {arm: [record(arm, seed, 6, 6).test_top1_pct for seed in range(3)] for arm in ("baseline", "se")}
    change = np.mean(last["se"]) - np.mean(last["baseline"])
    assert f"se has the highest test accuracy: {np.mean(last['se']):.2f} ± {np.std(last['se'], ddof=1):.2f} %, {change:+.2f} points" in text
    assert "over 3 pairs of seeds; it" in text
    assert re.search(r"2 arms, 6 runs, seeds 0\u20132. Baseline: baseline ?. The arms differ in model.attention ?\.", text), text[:900]
    assert "Complete: 6 of 6 runs finished." in text


def test_a_lead_within_chance_is_called_so(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=2)
    for seed, (one, other) in enumerate([(90.0, 91.0), (91.0, 90.5)]):
        sweep.finish("baseline", seed, last_test_top1_pct=one)
        sweep.finish("se", seed, last_test_top1_pct=other)
    assert "includes zero: these runs do not tell the two apart" in report_view.verdict(compare(sweep))[1]


def test_of_a_loss_the_lowest_leads_and_differences_are_of_it(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path)
    for seed in (0, 1):
        sweep.finish("baseline", seed, last_test_loss=0.5, last_test_top1_pct=95.0)
        sweep.finish("se", seed, last_test_loss=0.4 + 0.01 * seed, last_test_top1_pct=90.0)
    comparison = compare(sweep, metrics=("last_test_loss",))
    assert report_view.verdict(comparison)[0] == "se has the lowest last test loss: 0.4050 ± 0.0071, -0.0950 against baseline."
    assert [value for _, value in report_series.difference_points(comparison)[0].singles] == pytest.approx([-0.1, -0.09])


def test_cells_sort_by_their_numbers_whatever_their_units() -> None:
    found = [report_view._order(text) for text in ("697.7 M", "1.2 G", "4,697,162", "+1.44 [+1.15, +1.74], 5 pairs", "baseline", "-")]
    assert found == ["697700000.0", "1200000000.0", "4697162.0", "1.44", "0", None]


def test_without_a_finished_run_the_page_says_so_and_has_no_figures(tmp_path: Path) -> None:
    page = report.page(compare(FakeSweep(tmp_path)))
    assert "Nothing has finished yet" in page and "PARTIAL: 0 of 4 runs finished (4 new)." in page
    assert 'id="figures"' not in page and "Bokeh" not in Elements(page).scripts[0][:2000] and len(page) < 100_000


def test_every_run_has_a_section_and_those_not_in_the_numbers_a_reason(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=3)
    sweep.finish("baseline", 0)
    sweep.attempt("baseline", 1, "timed_out", "over the time limit of the job", hours=6, job="7_4")
    sweep.attempt("se", 0, "diverged", "loss is not finite at step 1410")
    sweep.attempt("se", 1, "user_error", "data.path: /scratch/train.tar does not exist.\nPut it there.")
    sweep.train("se", 1, range(1, 4))
    page = report.page(compare(sweep))
    text = " ".join(Elements(page).text.split())
    assert page.count('<details class="run">') == 6
    for said in ("over the time limit", "failed: diverged", "/scratch/train.tar does not exist. Put it there.", "3 of 6", "never started"):
        assert said in text, said
    attempt = '<td>3 h 00 min</td><td>timed_out</td><td>job 7_4, node1</td><td class="number">3.00</td>'
    assert attempt in page, "an attempt of 6 hours ago that ended half of that later"


def test_a_run_shows_what_it_has_otherwise_than_the_baseline(finished: str) -> None:
    assert finished.count("<code>model.attention</code></th><td>se</td><td>none</td>") == 3
    assert finished.count("Its settings are the baseline") == 3


def evil(gathered: Gathered) -> Gathered:
    """The same runs, with harm in every text that comes from a file."""

    def spoil(row: RunRow) -> RunRow:
        assert row.config
        config = {section: {**keys, EVIL: EVIL} for section, keys in row.config.items()} | {EVIL: {EVIL: EVIL}}
        spans = tuple(replace(span, host=EVIL, job=EVIL, ending=EVIL) for span in row.spans)
        result = row.result and replace(
            row.result, classes=[f"{EVIL}{n}" for n in range(10)], data_name=EVIL, device=EVIL, commit=EVIL, versions={EVIL: EVIL}
        )
        arms = tuple(f"{EVIL}{arm}" for arm in row.arms)
        return replace(row, arms=arms, sweep=EVIL, slug=EVIL, reason=EVIL, config=config, spans=spans, result=result)

    arms = tuple(f"{EVIL}{arm}" for arm in gathered.arms)
    return Gathered(arms=arms, rows=tuple(map(spoil, gathered.rows)), skipped=(EVIL, f"metrics: {EVIL}"))


def test_nothing_from_a_record_becomes_markup_code_or_control_characters(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=2)
    for seed in (0, 1):
        sweep.finish("baseline", seed)
    sweep.finish("se", 0)
    sweep.attempt("se", 1, "crashed", "boom")
    page = report.page(compare(evil(gather([sweep.folder.path]))))
    elements = Elements(page)
    tags = [tag for tag, _ in elements.found]
    assert (tags.count("script"), elements.text.count("alert(1)") > 20) == (3, True)
    assert all(attrs["src"].startswith("data:image/svg+xml,") for tag, attrs in elements.found if tag == "img")
    assert not [name for _, attrs in elements.found for name in attrs if name.startswith("on")]
    assert "<" not in elements.scripts[0] and json.loads(elements.scripts[0])["items"]
    assert {letter for letter in page if not letter.isprintable() and letter not in "\n\t"} - set(report.report_figures.script()) == set()
    assert "49" not in methods.paragraph(compare(evil(gather([sweep.folder.path])))).replace("490", ""), "{{7*7}} was computed"


def test_the_policy_allows_the_two_scripts_and_no_address(finished: str) -> None:
    elements = Elements(finished)
    policy = next(attrs["content"] for tag, attrs in elements.found if attrs.get("http-equiv") == "Content-Security-Policy")
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in elements.scripts[1:]]
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{hashes[0]}' 'sha256-{hashes[1]}';")
    addresses = [value for _, attrs in elements.found for name, value in attrs.items() if name in ("src", "href", "action")]
    assert [address for address in addresses if not address.startswith(("data:", "#"))] == []


def test_the_same_runs_give_the_same_bytes_wherever_they_lie_and_whatever_was_drawn_before(finished: str, tmp_path: Path) -> None:
    figure().line([1, 2], [3, 4])
    first = report.page(compare(FakeSweep(tmp_path, seeds=3).finish_all()))
    assert first == finished
    assert str(tmp_path) not in first and not re.search(r'"p\d{4}"', first)


def hundred_runs(root: Path) -> Gathered:
    """20 arms of 5 seeds with 900 noisy epochs each; the records are copies of two runs, the numbers are not."""
    draw = np.random.default_rng(0)
    gathered = gather([FakeSweep(root, seeds=1).finish_all().folder.path])
    rows, arms = [], tuple(f"an arm with a name {n}" for n in range(20))
    for number in range(100):
        row = gathered.rows[number % 2]
        assert row.config and row.result
        columns = {key: 90 + draw.standard_normal(900).cumsum() for key in COLUMNS} | {"epoch": np.arange(1.0, 901.0)}
        config = {**row.config, "train": {**row.config["train"], "seed": number % 5, "epochs": 900}}
        changes = {"last_test_top1_pct": 90 + draw.random(), "parameters": 10**6 + number // 5}
        rows.append(
            replace(
                row,
                arms=(arms[number // 5],),
                run_id=f"{number:012d}",
                config=config,
                history=history_of(columns),
                result=replace(row.result, **changes),
                spans=row.spans * 4,
            )
        )
    return Gathered(arms=arms, rows=tuple(rows), skipped=())


def test_a_page_of_a_hundred_runs_of_900_epochs_is_under_five_megabytes(tmp_path: Path) -> None:
    page = report.page(compare(hundred_runs(tmp_path)))
    assert page.count('<details class="run">') == 100
    assert len(page.encode()) < 5_000_000, len(page.encode())


def test_thinned_curves_keep_both_ends_and_their_values(tmp_path: Path) -> None:
    comparison = compare(hundred_runs(tmp_path))
    line = report_series.curve_panels(comparison)[0].lines[3]
    assert (line.x[0], line.x[-1], len(line.x)) == (1, 900, report_series.MEAN_POINTS)
    histories = [row.history.column("test_top1_pct") for row in comparison.gathered.of_arm(line.arm.name)]
    expected = np.mean(histories, axis=0)[np.array(line.x) - 1]
    np.testing.assert_allclose(line.mean, expected, atol=6e-4)
    assert line.low is not None
    np.testing.assert_allclose(np.array(line.mean) - line.low, np.std(histories, axis=0, ddof=1)[np.array(line.x) - 1], atol=2e-3)


def test_differences_are_of_equal_seeds(tmp_path: Path) -> None:
    comparison = compare(FakeSweep(tmp_path, seeds=3).finish_all())
    (point,) = report_series.difference_points(comparison)
    expected = [record("se", seed, 6, 6).test_top1_pct - record("baseline", seed, 6, 6).test_top1_pct for seed in range(3)]
    assert [value for _, value in point.singles] == pytest.approx(expected)
    assert point.mean == pytest.approx(np.mean(expected))


def test_confusion_is_summed_over_runs_and_the_baseline_is_open(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path)
    results = [sweep.finish("baseline", seed) for seed in (0, 1)]
    (one,) = report_view.confusions(compare(sweep))
    total = np.sum([result.confusion for result in results], axis=0)
    assert [[count for count, _, _ in counts] for _, counts in one.lines] == total.tolist() and one.is_open


def test_of_more_arms_than_can_be_told_apart_the_baseline_and_the_best_are_drawn(tmp_path: Path) -> None:
    gathered = hundred_runs(tmp_path)
    arms = tuple(f"a{n}" for n in range(100))
    rows = tuple(replace(row, arms=(arm,)) for row, arm in zip(gathered.rows, arms, strict=True))
    comparison = compare(Gathered(arms=arms, rows=rows, skipped=()), "a50")
    drawn = [arm.name for arm in report_series.drawn_arms(comparison)]
    best = sorted(rows, key=lambda row: row.result.last_test_top1_pct if row.result else 0)[-20:]
    assert set(drawn) == {"a50", *(row.arms[0] for row in best)} or len(drawn) == 21
    assert drawn == [arm for arm in arms if arm in drawn]


def test_the_methods_paragraph_is_the_golden_one(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=2, epochs=20)
    for arm, seed, accuracy in (("baseline", 0, 90.0), ("baseline", 1, 90.5), ("se", 0, 91.0)):
        sweep.finish(arm, seed, last_test_top1_pct=accuracy)
    assert methods.paragraph(compare(sweep)) + "\n" == (GOLDEN / "methods.txt").read_text()


def test_only_works_that_some_run_uses_are_cited() -> None:
    ours = {"model.blocks": [1], "model.attention": "none", "optim.schedule": "constant", "train.amp": "off"}
    assert [line for line in bibliography.bibtex([ours]).splitlines() if line.startswith("@")] == [
        "@software{hpc-seresnet,",
        "@inproceedings{he2016deep,",
    ]
    mixed = {"augment.mix_prob": 1.0, "augment.cutmix_share": 1.0, "train.amp": "bf16", "model.target": "mine:net", "model.blocks": [1]}
    keys = re.findall(r"@\w+\{(\S+),", bibliography.bibtex([mixed]))
    assert keys == ["hpc-seresnet", "yun2019cutmix", "micikevicius2018mixed"]


def test_the_software_is_cited_as_its_citation_file_says() -> None:
    said = yaml.safe_load((Path(hpc.__file__).parents[1] / "CITATION.cff").read_text())
    fields = dict(bibliography.SOFTWARE.fields)
    assert (fields["title"], fields["version"]) == (f"{{{said['title']}}}", said["version"])
    assert fields["author"] == f"{{{said['authors'][0]['name']}}}"


def test_settings_that_a_config_lacks_are_neither_shared_nor_lost() -> None:
    configs = [{"a": 1, "b": 2, "train.seed": 0}, {"a": 1, "train.seed": 1}]
    assert settings.shared(configs) == {"a": 1} and settings.varied(configs) == ["b"]


def test_keys_that_an_older_config_lacks_are_at_their_defaults_and_places_on_a_disk_are_no_settings() -> None:
    old = settings.flat({"model": {"width": 8}, "data": {"name": "digits", "dir": "/home/somebody/data"}})
    assert old["model.block"] == "basic" and old["model.width"] == 8
    assert not [value for value in old.values() if isinstance(value, str) and value.startswith("/")]
    assert settings.flat({"model": {"layers": 3}}) == {"model.layers": 3}, "somebody's own program has no defaults of ours"


def test_collect_writes_the_page_unless_told_not_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "draw", lambda *_: [])
    sweep = FakeSweep(tmp_path, epochs=2).finish_all()
    assert collect.main([str(sweep.folder.path), "--no-page"]) == 0
    assert not (sweep.folder.path / "report.html").exists()
    _, written = collect.collect([sweep.folder.path])
    assert written[-1] == sweep.folder.path / "report.html" and written[-1].read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("missing", ["bokeh", "jinja2"])
def test_without_what_the_page_needs_the_table_stands_and_one_line_says_so(
    tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(figures, "draw", lambda *_: [])
    sweep = FakeSweep(tmp_path, epochs=2).finish_all()
    for name in [name for name in sys.modules if name.startswith("hpc.report") or name.partition(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in vars(hpc) if name.startswith("report")]:
        monkeypatch.delattr(hpc, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert collect.main([str(sweep.folder.path)]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "report.html" in line]
    assert said == [f"no report.html: {missing} is not installed here (it comes with the extra `collect`)."]
    assert (sweep.folder.path / "table.md").exists() and not (sweep.folder.path / "report.html").exists()
