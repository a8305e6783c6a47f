"""docs/sweeps.md: every block of YAML is a sweep that reads, with as many runs as it says, for a site that exists."""

import re
import shutil
from pathlib import Path

import pytest

from hpc.site import read_site
from hpc.sweep import expand, read_sweep
from hpc.sweep_file import SECTIONS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/sweeps.md").read_text()
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_example_has_as_many_runs_as_it_says(block: str, tmp_path: Path) -> None:
    file = Path(shutil.copytree(ROOT / "configs", tmp_path / "configs")) / "example.yaml"
    file.write_text(block)
    spec = read_sweep(file)
    said = re.match(r"# ([0-9]+) runs?\n", block)
    assert said and len(expand(spec)) == int(said[1]), len(expand(spec))
    read_site(spec.site.asked, where=spec.site.where, origins=spec.site.origins, environ={"HOME": str(tmp_path), "PATH": ""})


def test_page_shows_every_section_in_an_example_and_stays_short() -> None:
    shown = set(re.findall(r"^([a-z_]+):", "\n".join(BLOCKS), re.MULTILINE))
    assert set(SECTIONS) - shown == set() and len(BLOCKS) >= 6
    assert len(PAGE.splitlines()) <= 120


def test_overrides_that_the_page_names_are_taken(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("base: {}\nrandom: {count: 2, keys: {optim.momentum: {uniform: [0.5, 0.9]}}}\n")
    values = {"name": "x", "mail": "you@example.org", "pack.mode": "concurrent", "site": "local", "wandb.mode": "offline"}
    words = re.findall(r"`([a-z_.]+)=(\S*)`", PAGE.partition("## From the command line")[2])
    assert len(words) >= 10
    for key, value in words:
        read_sweep(tmp_path / "sweep.yaml", [f"{key}={value or values.get(key, 3)}"])
