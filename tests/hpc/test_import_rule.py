"""The lines between the rooms: what may import what, and what must answer without torch. Fresh interpreters, not this one."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TORCH_FREE = (
    "hpc.launch",
    "hpc.launcher",
    "hpc.status",
    "hpc.collect",
    "hpc.worker",
    "hpc.supervisor",
    "hpc.slurm",
    "hpc.mirror",
    "hpc.sweep",
    "hpc.site",
    "hpc.__main__",
    "seresnet.config_file",
    "seresnet.prepare",
    "seresnet.claims",
    "seresnet.checkpoint",
    "seresnet.checkpoint_files",
    "seresnet.fork",
    "seresnet.repair",
    "seresnet.journal",
    "seresnet.run_folder",
    "seresnet.signals",
)
HEAVY = ("torch", "torchvision", "wandb")
#: Who may import a package that others must not.
ALONE = {"wandb": {"hpc/mirror.py"}, "submitit": {"hpc/slurm.py", "hpc/sbatch_script.py"}}


@pytest.mark.parametrize("module", TORCH_FREE)
def test_importing_it_brings_no_torch(module: str) -> None:
    code = f"import sys, {module}; print(*(set({HEAVY!r}) & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (answer.returncode, answer.stdout.strip()) == (0, ""), answer.stdout + answer.stderr


def imported(path: Path) -> set[str]:
    """Names of the top-level packages that a file imports anywhere, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def test_the_walk_sees_imports_inside_functions(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("def f():\n    from wandb.sdk import a\n    import torch.nn as nn\n")
    assert imported(tmp_path / "x.py") == {"wandb", "torch"}


def test_seresnet_imports_no_hpc_no_submitit_no_wandb() -> None:
    guilty = {path.name: imported(path) & {"hpc", "submitit", "wandb"} for path in (ROOT / "seresnet").rglob("*.py")}
    assert len(guilty) > 10, "the package was not found"
    assert not {name: found for name, found in guilty.items() if found}


def test_hpc_imports_no_torch() -> None:
    guilty = {path.name: imported(path) & {"torch", "torchvision"} for path in (ROOT / "hpc").rglob("*.py")}
    assert len(guilty) > 10, "the package was not found"
    assert not {name: found for name, found in guilty.items() if found}


@pytest.mark.parametrize("package", sorted(ALONE))
def test_one_place_alone_imports(package: str) -> None:
    found = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hpc").rglob("*.py") if package in imported(path)}
    assert found, f"nobody imports {package}: is this rule out of date?"
    assert found <= ALONE[package]


@pytest.mark.parametrize("module", ["hpc.launch", "hpc.status", "hpc"])
def test_help_answers_within_300_ms(module: str) -> None:
    command = [sys.executable, "-m", module, *(["--help"] if module != "hpc" else [])]
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        seconds.append(time.perf_counter() - started)
        assert answer.returncode == 0, answer.stderr
    assert min(seconds) < 0.3, f"best of five is {min(seconds):.3f} s"


def test_every_command_of_the_list_is_a_module_that_exists() -> None:
    from hpc.__main__ import COMMANDS

    modules = [words[2] for command, _ in COMMANDS if (words := command.split())[0] == "python"]
    missing = [module for module in modules if not (ROOT / (module.replace(".", "/") + ".py")).exists()]
    assert modules and not missing
