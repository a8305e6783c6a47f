"""What a command says it wrote: whole paths, and lines that a terminal does not break."""

from pathlib import Path

import pytest

from hpc.figure_names import DEFAULT, FORMATS
from hpc.written import listing

FOLDER = Path("/scratch/me/runs/ablation")
FIGURES = [FOLDER / "figures" / f"{name}.{form}" for name in DEFAULT for form in FORMATS]


def test_files_of_a_collect_stand_in_lines_that_fit_80_columns() -> None:
    found = listing([FOLDER / "table.md", FOLDER / "runs.csv", *FIGURES, FOLDER / "report.html"], 80)
    assert found.splitlines() == [
        "wrote",
        "  /scratch/me/runs/ablation/table.md",
        "  /scratch/me/runs/ablation/runs.csv",
        "  /scratch/me/runs/ablation/report.html",
        "  /scratch/me/runs/ablation/figures/",
        "    accuracy, loss, parameters, differences, confusion (png, svg, pdf)",
    ]


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_lines_of_names_fold_at_the_width_and_every_name_is_there(columns: int) -> None:
    files = [
        FOLDER / f"figure-{number:02d}{suffix}" for number in range(30) for suffix in (".png", ".pdf") if (number, suffix) != (3, ".pdf")
    ]
    lines = listing(files, columns).splitlines()
    assert max(map(len, lines)) <= columns
    assert " ".join(lines[2:]).replace(" ", "").split(",") == [path.name for path in files]  # no grid: one is missing


def test_a_long_path_stays_whole_and_control_characters_are_shown() -> None:
    long = Path("/" + "x" * 200) / "a\x1b[2J.md"
    assert listing([long], 80) == "wrote\n  /" + "x" * 200 + "/a\\x1b[2J.md"
