"""The code that a sweep runs: copied once per digest, and imported instead of the working copy."""

import json
import subprocess
import sys
from pathlib import Path

from hpc import code_snapshot


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
