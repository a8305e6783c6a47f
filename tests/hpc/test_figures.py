"""Files of figures: which are written, that they are whole, and that equal runs give equal bytes. How they look was judged by eye."""

import os
import random
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import pytest
from made_rows import made, made_row, with_rows
from PIL import Image

from hpc import collect, figures
from hpc.figure_names import DEFAULT, FIGURES, FORMATS, chosen_figures, chosen_formats
from hpc.figure_scene import scene
from hpc.figure_style import COLUMN, MOST_ARMS, PAGE, look, short
from hpc.gather import Gathered
from seresnet.errors import ConfigError


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every figure in every format, of two arms with two seeds each."""
    folder = tmp_path_factory.mktemp("figures")
    written = figures.draw(made(), folder, names=tuple(FIGURES))
    assert [path.name for path in written] == [f"{name}.{one}" for name in FIGURES for one in FORMATS]
    return folder


def test_every_svg_is_xml_with_paths_and_no_date(drawn: Path) -> None:
    for path in drawn.glob("*.svg"):
        root = ElementTree.fromstring(path.read_text())
        assert root.tag.endswith("}svg") and len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 10, path.name
        assert not list(root.iter("{http://purl.org/dc/elements/1.1/}date")), path.name


def test_every_png_has_the_width_of_a_column_or_a_page_at_300_dots_an_inch(drawn: Path) -> None:
    widths = {path.stem: Image.open(path).width for path in drawn.glob("*.png")}
    assert set(widths.values()) == {round(300 * COLUMN), round(300 * PAGE)}, widths


@pytest.mark.skipif(shutil.which("pdfinfo") is None, reason="needs pdfinfo (poppler-utils)")
def test_every_pdf_is_one_page_without_a_date_and_its_letters_are_truetype(drawn: Path) -> None:
    for path in drawn.glob("*.pdf"):
        said = subprocess.run(["pdfinfo", path], capture_output=True, text=True, check=True).stdout
        assert "Pages:           1" in said and "CreationDate" not in said, said
    fonts = subprocess.run(["pdffonts", drawn / "accuracy.pdf"], capture_output=True, text=True, check=True).stdout
    assert "TrueType" in fonts and "Type 3" not in fonts, fonts


def test_runs_read_in_another_order_give_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    rows = list(made().rows)
    random.Random(3).shuffle(rows)
    again = figures.draw(with_rows(made(), rows), tmp_path, names=tuple(FIGURES), formats=("svg", "pdf"))
    assert {path.name for path in again if path.read_bytes() != (drawn / path.name).read_bytes()} == set()


def test_another_process_in_another_time_zone_gives_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from made_rows import made; from hpc import figures; "
    program += "figures.draw(made(), Path(sys.argv[1]), names=('accuracy', 'hours'))"
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True, env=environment, capture_output=True)
    assert len(list(tmp_path.iterdir())) == 6
    assert {path.name for path in tmp_path.iterdir() if path.read_bytes() != (drawn / path.name).read_bytes()} == set()


def test_two_svgs_can_stand_in_one_page(drawn: Path) -> None:
    texts = {name: figures.svg(made(), name) for name in ("accuracy", "loss")}
    for name, text in texts.items():
        assert text is not None and text.startswith("<svg") and (drawn / f"{name}.svg").read_text().endswith(text)
    clips = [
        {line.get("id") for line in ElementTree.fromstring(text or "").iter("{http://www.w3.org/2000/svg}clipPath")}
        for text in texts.values()
    ]
    assert clips[0] and not clips[0] & clips[1]


def test_nothing_to_draw_writes_nothing_and_removes_what_an_earlier_state_left(tmp_path: Path) -> None:
    for name in ("loss.png", "loss.pdf", "hours.svg", "mine.png"):
        (tmp_path / name).write_bytes(b"old")
    never = Gathered(arms=("se",), rows=(), skipped=())
    assert figures.draw(never, tmp_path, names=("loss",), formats=("svg",)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]
    assert figures.svg(never, "loss") is None


def test_what_was_drawn_before_is_brought_up_to_date_whatever_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "learning-rate.pdf").write_bytes(b"old")
    (tmp_path / "parameters.svg").write_bytes(b"old")
    written = figures.draw(made(seeds=1, epochs=2), tmp_path, names=("parameters",), formats=("png",))
    assert [path.name for path in written] == ["parameters.png", "parameters.svg", "learning-rate.pdf"]
    assert all(path.stat().st_size > 5000 for path in written)


def test_names_and_formats_are_chosen_in_one_order_and_unknown_ones_refused_with_the_valid() -> None:
    assert (chosen_figures("all"), chosen_figures("none")) == (tuple(FIGURES), ())
    assert chosen_figures("hours, accuracy") == ("accuracy", "hours") and chosen_figures(",".join(DEFAULT)) == DEFAULT
    assert chosen_formats("pdf,png") == ("png", "pdf")
    with pytest.raises(ConfigError, match=r"^--figures loss,curves: curves is none\. Valid: accuracy, loss, .*, hours; or all, or none\.$"):
        chosen_figures("loss,curves")
    with pytest.raises(ConfigError, match=r"^--figure-formats jpg: jpg is none\. Valid: png, svg, pdf\.$"):
        chosen_formats("jpg")


def test_collect_refuses_an_unknown_figure_before_it_reads_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert collect.main([str(tmp_path / "none"), "--figures", "pie"]) == 2
    assert capsys.readouterr().err.startswith("--figures pie: pie is none. Valid: accuracy,")


def test_no_two_arms_look_alike_nor_neighbours_without_colour() -> None:
    looks = [look(place) for place in range(MOST_ARMS)]
    assert len({(one.colour, str(one.dash)) for one in looks}) == MOST_ARMS
    for one, other in pairwise(looks):
        assert one.dash != other.dash and one.marker != other.marker


def test_of_more_arms_than_looks_the_baseline_and_the_best_have_one() -> None:
    arms = [f"{'se' if place % 2 else 'r'}{place:02d}" for place in range(40)]  # "se" is 1.5 % better in fake_sweep
    seen = scene(made(arms, seeds=1, epochs=1), "r08")
    assert len(seen.looks) == MOST_ARMS and {arm[:2] for arm in seen.looks if arm != "r08"} == {"se"} and "r08" in seen.looks


@pytest.mark.parametrize("room", [12, 34])
def test_shortened_names_stay_apart_and_short_ones_stay_whole(room: int) -> None:
    names = ["se", *(f"squeeze-and-excitation-everywhere-with-reduction-{r}-for-900-epochs" for r in range(40))]
    kept = short(names, room)
    assert len(set(kept.values())) == 41 and kept["se"] == "se"
    assert max(map(len, kept.values())) <= room + 8, kept


def test_an_arm_that_was_never_started_is_no_error(tmp_path: Path) -> None:
    some = made(seeds=1, epochs=2)
    rows = [row for row in some.rows if row.arms == ("se",)]
    names = {path.stem for path in figures.draw(with_rows(some, rows), tmp_path, names=tuple(FIGURES), formats=("svg",))}
    assert names == set(FIGURES) - {"parameters", "multiply-adds", "differences"}  # these compare arms
    gone = [made_row("se", 0, 2, "running", planned=6)]
    names = {path.stem for path in figures.draw(with_rows(some, gone), tmp_path, names=tuple(FIGURES), formats=("svg",))}
    assert names == {"accuracy", "loss", "learning-rate", "throughput", "timeline", "hours"}
