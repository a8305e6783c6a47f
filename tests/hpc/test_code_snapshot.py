"""The code that a sweep runs: copied once per digest, and imported instead of the working copy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hpc import code_snapshot
from seresnet import provenance


def test_a_snapshot_is_imported_instead_of_the_working_copy(tmp_path: Path) -> None:
    folder = tmp_path / "code" / code_snapshot.snapshot_code(tmp_path / "code")
    command = [sys.executable, "-c", "import hpc, seresnet; print(hpc.__file__, seresnet.__file__)"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True).stdout.split()
    assert found == [str(folder / "hpc" / "__init__.py"), str(folder / "seresnet" / "__init__.py")]


def test_edited_code_is_a_new_snapshot_and_restored_code_the_old_one(tmp_path: Path) -> None:
    root, codes = tmp_path / "work", tmp_path / "code"
    for package in code_snapshot.PACKAGES:
        (root / package).mkdir(parents=True)
        (root / package / "a.py").write_text("x = 1\n")
    assert code_snapshot.snapshot_code(codes, root) == "0001"
    (root / "hpc" / "a.py").write_text("x = 2\n")
    assert code_snapshot.snapshot_code(codes, root) == "0002"
    (root / "hpc" / "a.py").write_text("x = 1\n")
    assert code_snapshot.snapshot_code(codes, root) == "0001"
    record = json.loads((codes / "0001" / "CODE.json").read_text())
    assert record["digest"] == code_snapshot.code_digest(codes / "0001") == code_snapshot.code_digest(root)


def repository(root: Path) -> str:
    """A git repository with both packages in it; returns its commit."""
    for package in code_snapshot.PACKAGES:
        (root / package).mkdir(parents=True)
        (root / package / "a.py").write_text("x = 1\n")
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


def test_a_changed_tree_is_recorded_as_a_dirty_commit_also_by_its_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, codes = tmp_path / "work", tmp_path / "code"
    commit = repository(root)
    (root / "README").write_text("no code")
    monkeypatch.setattr(provenance, "__file__", str(root / "seresnet" / "provenance.py"))
    assert provenance.commit() == commit
    (root / "hpc" / "a.py").write_text("x = 2\n")
    assert provenance.commit() == f"{commit}+dirty"
    snapshot = codes / code_snapshot.snapshot_code(codes, root)
    monkeypatch.setattr(provenance, "__file__", str(snapshot / "seresnet" / "provenance.py"))
    assert provenance.commit() == f"{commit}+dirty"


def test_a_snapshot_of_a_snapshot_keeps_its_commit(tmp_path: Path) -> None:
    commit = repository(tmp_path / "work")
    first = tmp_path / "code" / code_snapshot.snapshot_code(tmp_path / "code", tmp_path / "work")
    second = tmp_path / "again" / code_snapshot.snapshot_code(tmp_path / "again", first)
    assert provenance.commit_and_dirty(second) == (commit, False)


def test_code_outside_of_git_has_no_commit(tmp_path: Path) -> None:
    assert provenance.commit_and_dirty(tmp_path) == (None, None)


def test_changes_name_every_file_that_differs_and_how(tmp_path: Path) -> None:
    for root in (tmp_path / "old", tmp_path / "new"):
        for name in ("hpc/a.py", "hpc/b.py", "seresnet/c.py"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("x = 1\n")
    (tmp_path / "new/hpc/a.py").write_text("x = 2\n")
    (tmp_path / "new/hpc/b.py").unlink()
    (tmp_path / "new/seresnet/d.py").touch()
    (tmp_path / "new/seresnet/d.pyc").touch()
    assert code_snapshot.changes(tmp_path / "old", tmp_path / "old") == ()
    assert code_snapshot.changes(tmp_path / "old", tmp_path / "new") == ("changed hpc/a.py", "removed hpc/b.py", "added seresnet/d.py")
