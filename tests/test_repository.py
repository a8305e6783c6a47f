"""What holds for the repository as a whole: sizes, pins, links, set-up, README, and how tests are counted."""

import ast
import configparser
import os
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hpc
from hpc.sweep import expand
from hpc.sweep_file import read_sweep

ROOT = Path(__file__).resolve().parent.parent
CODE = [path for folder in ("seresnet", "hpc", "tools") for path in sorted((ROOT / folder).glob("*.py"))]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
FACTS = {
    "version": (3, 11),
    "python": "/p",
    "has_venv": True,
    "place": "/d",
    "inodes": 10**6,
    "bytes": 10**11,
    "memory": None,
    "address_space": None,
}

preflight = runpy.run_path(str(ROOT / "tools/preflight.py"))
rings = runpy.run_path(str(ROOT / "tools/run_rings.py"))


def test_ruff_refuses_an_import_across_the_rooms(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--stdin-filename", "seresnet/x.py", "-"]
    done = subprocess.run(command, cwd=ROOT, input="import hpc\n\nprint(hpc)\n", capture_output=True, text=True, check=False)
    assert "TID251" in done.stdout, done.stdout + done.stderr


# --- sizes and texts


@pytest.mark.parametrize("path", CODE, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_files_and_functions_keep_to_their_sizes(path: Path) -> None:
    text = path.read_text()
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [f"{node.name} has {size} lines" for node in functions if (size := (node.end_lineno or 0) - node.lineno + 1) > 60]
    assert (len(text.splitlines()) <= 400, long) == (True, [])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text())
    dead = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not dead


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_files_named_in_pages_exist(path: Path) -> None:
    text = path.read_text()
    modules = set(re.findall(r"-m ((?:hpc|seresnet)(?:\.\w+)*)", text))
    files = set(re.findall(r"(?<![\w./-])((?:configs|sbatch|tools|seresnet|hpc)/[\w./-]+\.(?:yaml|sh|py))", text))
    folders = {name: ROOT / name.replace(".", "/") for name in modules}
    missing = [name for name, place in folders.items() if not (place.with_suffix(".py").exists() or (place / "__main__.py").exists())]
    missing += [name for name in files if not (ROOT / name).exists()]
    assert not missing


def test_version_is_the_same_everywhere() -> None:
    assert re.search(rf"^version: {re.escape(hpc.__version__)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert re.search(rf"^## \[?{re.escape(hpc.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


# --- environment


def test_every_dependency_is_pinned_and_no_pin_names_a_place() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!_-]+", line)] == []
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    groups = [settings["options"]["install_requires"], *settings["options.extras_require"].values()]
    asked = {re.split(r"[\s<>=\[]", line)[0].lower() for group in groups for line in group.split("\n") if line.strip()}
    assert asked - {"hpc-seresnet"} - pinned == set()


@pytest.mark.parametrize(
    ("lack", "expected"),
    [
        ({"version": (3, 9)}, "Python 3.9 (/p) is too old, 3.11 or newer is needed. Name one: make setup PYTHON="),
        ({"has_venv": False}, "apt-get install python3-venv"),
        ({"inodes": 30_000}, "30,000 inodes are free in /d, 46,000 are needed. Choose another place: make setup VENV="),
        ({"bytes": 5 * 10**9}, "5.0 GB of disk are free in /d, 10.0 are needed."),
        ({"memory": 2 * 10**9}, "2.0 GB of memory, 3.0 GB are needed (a login node?). Here: make launcher."),
    ],
)
def test_what_an_environment_lacks_is_one_line_with_the_remedy(lack: dict[str, object], expected: str) -> None:
    found = preflight["faults"]("full", FACTS | lack)
    assert len(found) == 1 and expected in found[0] and "\n" not in found[0], found


def test_a_good_machine_has_no_faults_and_a_login_node_may_hold_the_launcher() -> None:
    assert preflight["faults"]("full", FACTS) == []
    login_node = FACTS | {"inodes": 30_000, "bytes": 5 * 10**9, "memory": 2 * 10**9, "address_space": 2 * 10**9}
    assert preflight["faults"]("launcher", login_node) == []


def test_preflight_sees_a_real_limit_on_address_space() -> None:
    script = f"ulimit -v 2000000; exec {sys.executable} tools/preflight.py full ."
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, "2.0 GB of address space" in done.stderr) == (1, True), done.stderr


def test_setup_refuses_a_missing_python_and_a_folder_that_is_no_environment(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    for python_name, expected in (("no-such-python", "there is no no-such-python here"), (sys.executable, "is not an environment")):
        environment = os.environ | {"PYTHON": python_name, "VENV": str(tmp_path)}
        done = subprocess.run(["bash", "tools/setup.sh", "full"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and expected in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.slow
def test_the_launcher_fits_a_login_node_and_its_help_comes_in_time(tmp_path: Path) -> None:
    venv = tmp_path / "launcher"
    command = ["make", "--no-print-directory", "launcher", f"LAUNCHER_VENV={venv}", f"PYTHON={sys.executable}"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    paths = list(venv.rglob("*"))
    megabytes = sum(path.lstat().st_blocks for path in paths) * 512 / 1e6
    assert (megabytes <= 100, len(paths) <= 6000) == (True, True), f"{megabytes:.0f} MB, {len(paths)} inodes"
    for module in ("hpc.launch", "hpc.status", "seresnet.prepare"):
        assert quickest_help(venv / "bin/python", module) < 0.3
    assert len(list(venv.rglob("*"))) <= 6000


def quickest_help(interpreter: Path, module: str, tries: int = 7) -> float:
    """Seconds of the fastest of several `--help`; the fastest, because other tests share the cores."""
    seconds = []
    for _ in range(tries):
        start = time.perf_counter()
        done = subprocess.run([interpreter, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0 and "usage" in done.stdout, done.stderr
    return min(seconds)


# --- counting of tests

OUTCOMES = """
import pytest
def test_passes(): pass
def test_fails(): assert False
@pytest.mark.slow
def test_slow(): pass
@pytest.mark.gpu
def test_gpu(): pytest.skip("gpu: none")
def test_skips(): pytest.skip("no reason to run")
"""


def counted(folder: Path, source: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the rings over a repository that has our conftest and one test file."""
    (folder / "tests/faults").mkdir(parents=True)
    (folder / "tests/conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (folder / "setup.cfg").write_text((ROOT / "setup.cfg").read_text())
    (folder / "tests/faults/test_outcomes.py").write_text(source)
    variables = {name: value for name, value in os.environ.items() if name != "RING"} | environment
    command = [sys.executable, str(ROOT / "tools/run_rings.py")]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)


def test_without_ring_skips_are_named_and_only_failures_fail(tmp_path: Path) -> None:
    done = counted(tmp_path, OUTCOMES.replace("def test_fails(): assert False\n", ""))
    assert done.stdout.splitlines()[-1] == "1 passed, 0 failed, 3 skipped"
    assert done.returncode == 0 and "skipped in faults: 1 x slow: RING=full make test runs it" in done.stdout


def test_under_ring_full_slow_tests_run_and_a_skip_without_gpu_fails(tmp_path: Path) -> None:
    done = counted(tmp_path, OUTCOMES.replace("def test_fails(): assert False\n", ""), RING="full")
    assert done.stdout.splitlines()[-1] == "2 passed, 1 failed, 2 skipped"
    assert done.returncode == 1 and "FAILED: ring faults: skipped, but only GPU tests may be: no reason to run" in done.stdout


def test_a_failed_test_and_a_file_that_does_not_import_are_counted(tmp_path: Path) -> None:
    assert counted(tmp_path / "a", OUTCOMES).stdout.splitlines()[-1] == "1 passed, 1 failed, 3 skipped"
    broken = counted(tmp_path / "b", "import nothing_of_that_name\n")
    assert (broken.returncode, broken.stdout.splitlines()[-1]) == (1, "0 passed, 1 failed, 0 skipped")


def test_a_pytest_that_dies_counts_as_a_failure(tmp_path: Path) -> None:
    done = counted(tmp_path, "import os\ndef test_dies(): os._exit(3)\n")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "0 passed, 1 failed, 0 skipped")


def test_an_unknown_ring_names_the_valid_ones(tmp_path: Path) -> None:
    done = counted(tmp_path, OUTCOMES, RING="fults")
    assert done.returncode == 1 and "RING=fults is not a ring. Use full, faults, gpu" in done.stderr


def test_rings_over_half_an_hour_fail_only_under_ring_full() -> None:
    slow = rings["RingResult"](name="unit", seconds=1801.0, passed=1)
    assert rings["faults"]([slow], full=False, seconds=1801.0) == []
    assert rings["faults"]([slow], full=True, seconds=1801.0) == ["the rings took 30 minutes, 30 are allowed"]


def test_the_shares_of_each_ring_hold_every_file_once() -> None:
    found = rings["find_rings"](ROOT / "tests")
    pieces = rings["pieces_of"](found)
    assert [name for name, _ in pieces[:2]] == ["slurm", "slurm"], pieces
    for ring in found:
        files = sorted(argument for name, arguments in pieces for argument in arguments if name == ring)
        folders = [ROOT / "tests"] if ring == "unit" else []
        folders += [ROOT / "tests" / name for name in (("seresnet", "hpc") if ring == "unit" else (ring,))]
        assert files == sorted(str(path) for folder in folders for path in folder.glob("test_*.py")), ring


def test_shares_count_as_one_ring_that_lasts_from_its_first_beginning_to_its_last_end() -> None:
    early = rings["RingResult"](name="slurm", began=10.0, seconds=3.0, passed=2, failed=1, slowest=[(2.0, "a"), (0.5, "b")])
    late = rings["RingResult"](name="slurm", began=11.0, seconds=4.0, passed=2, failed=1, slowest=[(1.5, "c")])
    (whole,) = rings["merged"]([late, early])
    assert (whole.seconds, whole.passed, whole.failed) == (5.0, 4, 2)
    slow = [line for line in rings["summary"]([whole], []).splitlines() if line.startswith("slow")]
    assert [line.split() for line in slow] == [["slow", "in", "slurm:", "2.0", "s", "a"], ["slow", "in", "slurm:", "1.5", "s", "c"]]


def test_a_ring_that_runs_beside_others_is_shown_and_counted(tmp_path: Path) -> None:
    (tmp_path / "tests/slurm").mkdir(parents=True)
    for name in ("one", "two"):
        (tmp_path / f"tests/slurm/test_{name}.py").write_text(f"def test_{name}(): assert {name == 'one'}\n")
    done = counted(tmp_path, "def test_passes(): pass\n", RING="full")
    assert done.stdout.splitlines()[-1] == "2 passed, 1 failed, 0 skipped"
    assert done.returncode == 1 and "FAILED tests/slurm/test_two.py::test_two" in done.stdout


def test_every_folder_of_tests_is_in_a_ring() -> None:
    arguments = [argument for ring in rings["find_rings"](ROOT / "tests").values() for argument in ring]
    missed = [path for path in (ROOT / "tests").rglob("test_*.py") if not any(path.is_relative_to(argument) for argument in arguments)]
    assert not missed


# --- README


def readme_block(language: str) -> str:
    """The first fenced block of README in this language."""
    block = re.search(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block, f"README has no {language} block"
    return block[1]


def test_the_sweep_in_readme_is_the_demo(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text(readme_block("yaml"))
    shown, demo = (expand(read_sweep(path)) for path in (tmp_path / "demo.yaml", ROOT / "configs/demo.yaml"))
    assert [(run.run_id, run.arms, run.slug) for run in shown] == [(run.run_id, run.arms, run.slug) for run in demo]


def test_the_plan_in_readme_is_what_launch_prints(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hpc.launch", "--sweep", "configs/demo.yaml", "--local", "--dry-run", "--runs-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    printed = [line.rstrip() for line in done.stdout.splitlines()]
    assert [line for line in readme_block("text").splitlines() if line.rstrip() not in printed] == [], done.stdout + done.stderr


def test_the_picture_of_a_table_loads_nothing_from_outside(tmp_path: Path) -> None:
    text = (ROOT / "docs/images/table.svg").read_text()
    assert re.findall(r"(?:href|src|url)\s*[=(]\s*[\"']?(?!#)[^\s)]+", text) == []
    assert "baseline" in text and "finished" in text


def test_every_decision_is_listed_in_the_map_of_docs() -> None:
    text = (ROOT / "docs/index.md").read_text()
    assert [path.name for path in (ROOT / "docs/adr").glob("*.md") if f"adr/{path.name}" not in text] == []


def test_pages_leave_nothing_to_be_filled_in() -> None:
    marks = [
        f"{path.name}: {found}"
        for path in PAGES
        for found in re.findall(r"\(lead:[^)]*\)|\b(?:DEMO_MINUTES|ADR_LIST)\b|^PLAN$", path.read_text(), re.MULTILINE)
    ]
    assert not marks


def test_no_two_test_files_share_a_name() -> None:
    # pytest imports them by name alone: two of one name and a bare `pytest` stops before the first test.
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_setup_leaves_the_environment_of_another_checkout_alone(tmp_path: Path) -> None:
    record = tmp_path / "venv/lib/python3.11/site-packages/hpc_seresnet-0.1.0.dist-info/direct_url.json"
    record.parent.mkdir(parents=True)
    (tmp_path / "venv/pyvenv.cfg").touch()
    record.write_text(f'{{"dir_info": {{"editable": true}}, "url": "file://{tmp_path}"}}')
    environment = os.environ | {"PYTHON": sys.executable, "VENV": str(tmp_path / "venv")}
    done = subprocess.run(["bash", "tools/setup.sh", "full"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and f"serves the checkout in {tmp_path}" in done.stderr, done.stderr
    assert record.exists()
