"""docs/cluster.md and sbatch/: what the page says exists, and its set-up script refuses what it cannot do. tests/slurm types it in."""

import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpc.launch import build_parser
from hpc.pending import REASONS, plain_reason
from hpc.site import read_site
from hpc.states import STATES, label
from hpc.sweep import expand, read_sweep
from seresnet.exits import AFTER_ENDING

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/cluster.md").read_text()
SCRIPTS = sorted((ROOT / "sbatch").glob("*.sh"))
COMMANDS = ("hpc.launch", "hpc.status", "hpc.collect", "hpc.mirror", "seresnet.prepare")
#: Of sbatch and srun.
SLURMS = {"--account", "--mem", "--time"}
TROUBLE = [re.split(r"(?<!\\)\|", line)[1:4] for line in PAGE.partition("## When it goes wrong")[2].splitlines() if line.startswith("| `")]


# --- the page


def test_page_is_short_and_says_first_what_was_not_seen() -> None:
    assert len(PAGE.splitlines()) <= 160
    assert "None of this has run at NYU or on a GPU" in PAGE.splitlines()[2]
    assert "report.html" not in PAGE


@pytest.mark.parametrize("module", COMMANDS)
def test_every_option_of_a_command_on_the_page_is_in_its_help(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    known = set(re.findall(r"--[a-z-]+", done.stdout))
    lines = [line.replace("LAUNCH", "-m hpc.launch") for line in re.findall(r"^.*-m .*$|`LAUNCH [^`]*`", PAGE, re.MULTILINE)]
    asked = {option for line in lines for option in re.findall(r"--[a-z-]+", line.partition(f"-m {module}")[2].partition("`")[0])}
    assert asked - known == set() and known


def test_every_option_that_the_page_speaks_of_exists() -> None:
    told = "".join(
        subprocess.run([sys.executable, "-m", name, "--help"], cwd=ROOT, capture_output=True, text=True).stdout for name in COMMANDS
    )
    spoken = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE))
    assert spoken - set(re.findall(r"--[a-z-]+", told)) - SLURMS == set() and len(spoken) > 20


def test_launches_that_the_table_of_troubles_advises_are_understood(tmp_path: Path) -> None:
    advised = {words.replace("\\|", "|") for _, _, do in TROUBLE for words in re.findall(r"`LAUNCH ([^`]*)`", do)}
    for words in advised:
        args = build_parser().parse_intermixed_args(["--sweep", str(ROOT / "configs/ablation.yaml"), *re.sub("'", "", words).split()])
        overrides = [*args.overrides, *args.alter, "site.extends=nyu-torch"]
        spec = read_sweep(args.sweep, overrides)
        assert expand(spec), words
        read_site(spec.site.asked, where=spec.site.where, origins=spec.site.origins, environ={"HOME": str(tmp_path), "PATH": ""})
    assert len(advised) > 10


def test_every_symptom_on_the_page_is_what_the_code_says() -> None:
    said = [re.sub(r'"\s*f?"', "", path.read_text()) for folder in ("hpc", "seresnet") for path in sorted((ROOT / folder).glob("*.py"))]
    said += [*REASONS.values(), plain_reason("QOSMaxGRESPerUser"), (ROOT / "tools/setup.sh").read_text()]
    said += [label("failed", ending) for ending, after in AFTER_ENDING.items() if after == "failed"]
    said += [*STATES, label("cancelled", "cancelled_by_site"), "--smoke", "setup.log", "logs/"]
    # Of Python and of the system.
    said += ["No module named", "Disk quota exceeded", "No space left on device"]
    symptoms = [symptom for seen, _, _ in TROUBLE for symptom in re.findall(r"`([^`]*)`", seen)]
    figures = {"evicted 10": "evicted {len(evictions)}", "use 23 %": "use {mean:.0f} %"}
    written = [functools.reduce(lambda text, old: text.replace(old, figures[old]), figures, symptom) for symptom in symptoms]
    assert [symptom for symptom in written if not any(symptom in text for text in said)] == []
    assert len(symptoms) >= 20


def test_every_class_of_failure_has_a_line() -> None:
    symptoms = " ".join(seen for seen, _, _ in TROUBLE)
    failed = {ending for ending, after in AFTER_ENDING.items() if after == "failed"}
    assert {ending for ending in failed if f"failed: {ending}" not in symptoms} == set()


# --- sbatch/


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_and_short(path: Path) -> None:
    lines = path.read_text().splitlines()
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(lines) <= 40 and max(map(len, lines)) <= 140


#: Stands in for apptainer: an overlay is a folder, and what it shows as /ext3 is that folder.
APPTAINER = """\
#!/bin/bash
echo "$@" >> "$LOG"
[ "$1" = overlay ] && exec mkdir "${@: -1}"
while [ "$1" != "$IMAGE" ]; do [ "$1" != --overlay ] || overlay=$2; shift; done
shift
exec "${@/\\/ext3/$overlay}"
"""
#: Stands in for tools/setup.sh, which fetches 3 GB.
MAKES = """\
mkdir -p "$VENV/bin" && printf '#!/bin/bash\\necho "setup: torch 9"\\n' > "$VENV/bin/python" && chmod +x "$VENV/bin/python"
echo "$1 $PYTHON" > "$VENV/asked"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, text in (("tools/setup.sh", MAKES), ("bin/apptainer", APPTAINER), ("image.sif", "")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "bin/apptainer").chmod(0o755)
    shutil.copytree(ROOT / "sbatch", tmp_path / "sbatch")
    return tmp_path


def set_up(checkout: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    env = {"PATH": f"{checkout}/bin:{os.environ['PATH']}", "HOME": "/nonexistent", "LOG": str(checkout / "log"), **variables}
    return subprocess.run(["bash", "sbatch/setup.sh"], cwd=checkout, env=env, capture_output=True, text=True)


def test_set_up_into_a_folder_says_what_belongs_into_the_site_file(checkout: Path) -> None:
    done = set_up(checkout, VENV="env", VIRTUAL_ENV="/login", PATH=f"/login/bin:{os.environ['PATH']}")
    python = f"{checkout}/env/bin/python"
    expected = f"setup: torch 9\n# for ~/.config/hpc/site.yaml\npython: {python}\n# by hand: {python}\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")
    assert (checkout / "env/asked").read_text() == "full python3\n"


def test_set_up_into_an_overlay_makes_it_writes_it_and_names_the_container(checkout: Path) -> None:
    overlay, image = f"{checkout}/scratch/overlay.ext3", f"{checkout}/image.sif"
    done = set_up(checkout, IMAGE=image, OVERLAY=overlay, SCRATCH="/scratch/me", PYTHON="python3.12")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    site = f"container: apptainer\nimage: {image}\noverlay: {overlay}\npython: /ext3/env/bin/python\n"
    by_hand = f"# by hand: apptainer exec --overlay {overlay}:ro --bind {checkout} --bind /scratch/me {image} /ext3/env/bin/python\n"
    assert done.stdout == f"setup: torch 9\n# for ~/.config/hpc/site.yaml\n{site}{by_hand}"
    calls = (checkout / "log").read_text().splitlines()
    assert calls[0] == f"overlay create --sparse --size 16384 --create-dir /ext3 {overlay}"
    assert calls[1].startswith(
        f"exec --overlay {overlay} --bind {checkout} --pwd {checkout} {image} env PYTHON=python3.12 VENV=/ext3/env bash"
    )
    assert set_up(checkout, IMAGE=image, OVERLAY=overlay).returncode == 0, "a second time goes on"
    assert sum(line.startswith("overlay") for line in (checkout / "log").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"IMAGE": "no.sif", "OVERLAY": "o"}, "no.sif is not there. Name the image"),
        ({"IMAGE": "image.sif"}, "OVERLAY is not set. Name the file"),
        ({"OVERLAY": "o"}, "IMAGE= is not there. Name the image"),
        ({"IMAGE": "image.sif", "OVERLAY": "o", "VENV": "env"}, "VENV and an overlay are two places"),
        ({"IMAGE": "image.sif", "OVERLAY": "o", "PATH": "/usr/bin:/bin"}, "no apptainer or singularity on PATH"),
        ({"IMAGE": "image.sif", "OVERLAY": "file/o"}, "file"),
        ({"VENV": "file/env"}, "not finished, the reason stands above"),
    ],
)
def test_set_up_says_what_to_do_when_it_cannot(checkout: Path, variables: dict[str, str], expected: str) -> None:
    (checkout / "file").touch()
    done = set_up(checkout, **variables)
    assert done.returncode == 1 and expected in done.stderr, done


def test_set_up_elsewhere_than_in_a_checkout_is_refused(checkout: Path) -> None:
    shutil.rmtree(checkout / "tools")
    done = set_up(checkout)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and "Say it in the checkout" in done.stderr
