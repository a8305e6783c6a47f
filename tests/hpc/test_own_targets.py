"""Targets looked at before anything is sent: read from the source, never imported; and the modules that come along with the code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hpc import code_snapshot
from hpc.sweep_file import read_sweep
from seresnet import own_code
from seresnet.errors import ConfigError

#: Importing it would end the test: the launcher must not.
NETS = """
raise SystemExit("imported")
from os import path as place
if True:
    def build(num_classes): ...
class Net: ...
try:
    SIZE = 3
except ImportError:
    other = None
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own_nets.py").write_text(NETS)
    (tmp_path / "lib" / "deep").mkdir(parents=True)
    (tmp_path / "lib" / "deep" / "__init__.py").write_text("from json import *\n")
    (tmp_path / "lib" / "__init__.py").write_text("")
    (tmp_path / "lib" / "torn.py").write_text("def build(:\n")
    return tmp_path


def sweep(folder: Path, target: str, head: str = "", key: str = "model.target") -> Path:
    path = folder / "own.yaml"
    path.write_text(f"{head}\nbase:\n  {key}: {target}\n")
    return path


@pytest.mark.parametrize("name", ["build", "Net", "Net.small", "place", "SIZE", "other"])
def test_names_that_a_source_defines_or_imports_are_accepted(folder: Path, name: str) -> None:
    spec = read_sweep(sweep(folder, f"own_nets:{name}"))
    assert (spec.code_root, spec.notes) == (folder.resolve(), ())


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("own_nets:biuld", "own_nets.py defines no biuld. Did you mean build?"),
        ("own_nets:something_else", "own_nets.py defines no something_else. Correct the name."),
        ("lib.deeq:build", "there is no module lib.deeq in {folder}. Did you mean deep?"),
        ("lib.torn:build", "torn.py:1: invalid syntax"),
    ],
)
@pytest.mark.parametrize("key", ["model.target", "data.target", "train.loss_target"])
def test_wrong_target_is_refused_with_its_line_and_the_nearest_name(folder: Path, target: str, said: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_sweep(sweep(folder, target, key=key))
    assert f"own.yaml:3: {key}: {target}: " in str(caught.value)
    assert said.format(folder=folder.resolve()) in str(caught.value)


def test_folder_of_the_sweep_that_holds_a_data_set_alone_is_its_code_root(folder: Path) -> None:
    assert read_sweep(sweep(folder, "own_nets:build", key="data.target")).code_root == folder.resolve()


def test_module_beside_the_wanted_one_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no module own_netz in .* Did you mean own_nets\?"):
        read_sweep(sweep(folder, "own_netz:build", head="code_root: ."))


def test_module_of_the_launchers_folder_alone_is_refused(folder: Path, tmp_path_factory, monkeypatch) -> None:
    here = tmp_path_factory.mktemp("here")
    (here / "own_here.py").write_text("def build(): ...\n")
    monkeypatch.chdir(here)
    with pytest.raises(ConfigError, match=r"own_here lies in .* which is not part of the sweep. Say code_root"):
        read_sweep(sweep(folder, "own_here:build"))


def test_what_only_importing_would_tell_is_noted_and_not_refused(folder: Path) -> None:
    (note,) = read_sweep(sweep(folder, "lib.deep:dumps")).notes
    assert note.endswith("makes names that only importing it would tell, so dumps was not looked at")
    (note,) = read_sweep(sweep(folder, "a_package_that_nobody_has.create_model")).notes
    assert "so it was not looked at; jobs must have it installed" in note


def test_installed_package_is_looked_at_where_it_lies(folder: Path) -> None:
    spec = read_sweep(sweep(folder, "json:dumps"))
    assert (spec.code_root, spec.notes) == (None, ())
    # A module of a package is a name of it once it is imported, and nobody defines it.
    assert read_sweep(sweep(folder, "json:tool.main")).notes == ()
    with pytest.raises(ConfigError, match=r"json/__init__\.py defines no dmups\. Did you mean dumps\?"):
        read_sweep(sweep(folder, "json:dmups"))


def test_module_that_would_shadow_pythons_own_is_refused(folder: Path) -> None:
    (folder / "queue.py").write_text("")
    with pytest.raises(ConfigError, match="queue would be imported instead of the queue that others mean"):
        read_sweep(sweep(folder, "own_nets:build"))


def test_code_root_that_is_no_folder_is_refused_with_its_line(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"own.yaml:1: code_root: 'libs' is not a folder"):
        read_sweep(sweep(folder, "own_nets:build", head="code_root: libs"))


def test_snapshot_holds_the_modules_and_knows_when_they_are_edited(folder: Path, tmp_path_factory) -> None:
    codes = tmp_path_factory.mktemp("codes")
    (folder / "notes.txt").write_text("not code")
    (folder / ".venv" / "lib").mkdir(parents=True)
    (folder / ".venv" / "lib" / "large.py").write_text("")
    number = code_snapshot.snapshot_code(codes, user=folder)
    copied = {path.relative_to(codes / number / "user").as_posix() for path in (codes / number / "user").rglob("*") if path.is_file()}
    assert copied == {"own_nets.py", "lib/__init__.py", "lib/torn.py", "lib/deep/__init__.py"}
    digest = json.loads((codes / number / code_snapshot.MARK).read_text())["digest"]
    assert digest == code_snapshot.code_digest(codes / number) == code_snapshot.code_digest(user=folder) != code_snapshot.code_digest()
    assert code_snapshot.peek(codes, user=folder) == (number, True)
    (folder / "own_nets.py").write_text("def build(): ...\n")
    assert code_snapshot.peek(codes, user=folder) == ("0002", False)
    assert code_snapshot.changes(codes / number, user=folder) == ("changed user/own_nets.py",)


def test_snapshot_of_a_sweep_without_targets_is_as_it_was(tmp_path: Path) -> None:
    number = code_snapshot.snapshot_code(tmp_path)
    assert sorted(path.name for path in (tmp_path / number).iterdir()) == ["CODE.json", "hpc", "seresnet"]


def test_what_runs_in_a_snapshot_imports_the_modules_it_was_sent_with(folder: Path, tmp_path_factory, monkeypatch) -> None:
    codes = tmp_path_factory.mktemp("codes")
    (folder / "own_nets.py").write_text("WORD = 'sent'\n")
    snapshot = codes / code_snapshot.snapshot_code(codes, user=folder)
    (folder / "own_nets.py").write_text("WORD = 'edited'\n")
    ask = "from seresnet import own_code, provenance; own_code.make_importable(); import own_nets; "
    ask += "print(own_nets.WORD, provenance.code_digest())"
    said = [
        subprocess.run(
            [sys.executable, "-c", ask], cwd=cwd, env={own_code.VARIABLE: str(folder)}, capture_output=True, text=True
        ).stdout.split()
        for cwd in (snapshot, code_snapshot.ROOT)
    ]
    assert [words[0] for words in said] == ["sent", "edited"]
    assert said[0][1] != said[1][1], "the table would not tell that two codes are mixed"


def test_folder_with_too_many_files_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(own_code, "_MOST_FILES", 2)
    for number in range(3):
        (tmp_path / f"m{number}.py").write_text("")
    with pytest.raises(ConfigError, match=r"holds more than 2 source files"):
        list(own_code.files(tmp_path))
