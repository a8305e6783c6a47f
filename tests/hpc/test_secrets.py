"""Keys stay in the environment: a launch is given some, and no file that it writes may hold one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_slurm import Books
from launch_bench import SWEEP

KEY, TOKEN = "planted-wandb-key-0123456789abcdef", "planted-token-fedcba9876543210"
SECRETS = {"WANDB_API_KEY": KEY, "HF_TOKEN": TOKEN, "SLURM_JWT": TOKEN}


@pytest.fixture
def books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Books:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("NETRC", str(tmp_path / "config" / "netrc"))
    (tmp_path / "config" / "hpc").mkdir(parents=True)
    (tmp_path / "config" / "netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    (tmp_path / "demo.yaml").write_text(SWEEP)
    return Books(tmp_path, monkeypatch)


def launch(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "hpc.launch", "--sweep", "demo.yaml", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, env=environ, check=False)


def files_with_a_secret(root: Path, but: Path) -> list[str]:
    found = (path for path in root.rglob("*") if path.is_file() and but not in path.parents)
    return [str(path.relative_to(root)) for path in found if any(word.encode() in path.read_bytes() for word in (KEY, TOKEN))]


def test_no_file_of_a_launch_holds_a_planted_key(tmp_path: Path, books: Books) -> None:
    done = launch(tmp_path, "site=slurm", "--smoke")
    assert done.returncode == 0, done.stderr
    assert KEY not in done.stdout + done.stderr and TOKEN not in done.stdout + done.stderr
    logs = tmp_path / "runs" / "demo" / "logs"
    assert list(logs.glob("*.pkl")) and list(logs.glob("*.sh")) and (tmp_path / "runs" / "demo" / "plan.txt").exists()
    own = [name for name in files_with_a_secret(tmp_path, tmp_path / "config") if not name.startswith("books/")]
    assert own == [], "a launch wrote a key into a file"


def test_jobs_get_keys_through_the_environment_and_no_token_of_the_scheduler(tmp_path: Path, books: Books) -> None:
    assert launch(tmp_path, "site=slurm").returncode == 0
    (told,) = books.path.glob("*.env")
    lines = told.read_text().splitlines()
    assert f"WANDB_API_KEY={KEY}" in lines
    assert not [line for line in lines if line.startswith("SLURM_JWT=")]
    (script,) = books.path.glob("*.sh")
    assert KEY not in script.read_text()


def test_a_key_in_the_personal_site_file_is_refused_without_showing_it(tmp_path: Path, books: Books) -> None:
    personal = tmp_path / "config" / "hpc" / "site.yaml"
    personal.write_text(f"extends: slurm\nsetup:\n  - export WANDB_API_KEY={KEY}\n")
    done = launch(tmp_path)
    assert done.returncode == 2
    assert f"{personal}:" in done.stderr and KEY not in done.stdout + done.stderr
    assert not (tmp_path / "runs").exists()
