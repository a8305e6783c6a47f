"""Where array files go, what the command prints, and how it tells of its progress."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from prepare_sources import image_folder

from seresnet import cifar10, data_progress, prepare
from seresnet.config import DataConfig
from seresnet.errors import DataError
from seresnet.prepare import data_dir, find_prepared, load_arrays, main


def images_at(path):
    return DataConfig(name="images", path=str(path))


def test_data_dir_is_the_configs_then_the_environments_then_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert data_dir(DataConfig(dir="/a"), {"HPC_DATA_DIR": "/b"}) == Path("/a")
    assert data_dir(DataConfig(), {"HPC_DATA_DIR": "/b"}) == Path("/b")
    assert data_dir(DataConfig(), {"HOME": str(tmp_path), "PATH": ""}) == Path("data")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("inside", [".", "clones/hpc-seresnet"])
@pytest.mark.parametrize("sign", ["job", "sbatch"])
def test_default_data_dir_in_home_is_refused_on_a_cluster(tmp_path, monkeypatch, inside, sign):
    (tmp_path / inside).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / inside)
    (tmp_path / "sbatch").touch(mode=0o755)
    environ = {"HOME": str(tmp_path), "PATH": str(tmp_path) if sign == "sbatch" else ""} | ({"SLURM_JOB_ID": "7"} if sign == "job" else {})
    with pytest.raises(DataError, match=r"^data\.dir: unset.*HOME.*HPC_DATA_DIR"):
        data_dir(DataConfig(), environ)
    assert data_dir(DataConfig(dir="data"), environ) == Path("data")
    assert data_dir(DataConfig(), environ | {"HOME": "/nonexistent"}) == Path("data")


def test_data_dir_that_cannot_be_written_is_named(tmp_path):
    image_folder(tmp_path / "i")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file: cannot be written: .*Set data\.dir"):
        prepare.prepare(images_at(tmp_path / "i"), tmp_path / "file")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(name="images"), r"data\.path: unset, but data\.name images needs it"),
        (DataConfig(name="digits", path="x"), r"data\.path: x, but data\.name digits comes with scikit-learn"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path, config, message):
    with pytest.raises(DataError, match=message):
        prepare.prepare(config, tmp_path)


def test_command_prints_what_was_made(tmp_path, capsys):
    image_folder(tmp_path / "i")
    assert main([str(tmp_path / "i"), "--data-dir", str(tmp_path / "d")]) == 0
    made = find_prepared(images_at(tmp_path / "i"), tmp_path / "d")
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert printed["file"] == str(made) and printed["digest"] == load_arrays(made).digest
    assert printed["images"] == "6 train, 6 test, 8x6" and printed["classes"] == "2: cat, dog"
    assert printed["use"] == f"data.name=images data.path={tmp_path / 'i'}"


def test_command_tells_cifar10_by_its_classes(tmp_path, capsys):
    image_folder(tmp_path / "i", classes=cifar10.CLASSES, count=1)
    for _ in range(2):
        assert main([str(tmp_path / "i"), "--data-dir", str(tmp_path / "d")]) == 0
        assert "data.name=cifar10" in capsys.readouterr().out


def test_command_ends_with_2_and_one_line_for_what_the_user_can_mend(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere"), "--data-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"{tmp_path / 'nowhere'}: no such file or folder. Correct data.path.\n"


def test_importing_prepare_imports_nothing_heavy():
    code = "import sys, seresnet.prepare; print([m for m in ('numpy', 'PIL', 'rich', 'torch', 'yaml', 'sklearn') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_preparing_imports_no_torch_and_no_scikit_learn(tmp_path):
    code = f"import sys; from seresnet.prepare import main; main(['digits', '--data-dir', {str(tmp_path)!r}]); "
    code += "print('torch' in sys.modules, 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.endswith("False False\n")


def test_progress_in_a_log_is_plain_lines_and_few():
    stream = io.StringIO()
    with data_progress.shown(stream) as report:
        for done in range(1001):
            report("decode images", done, 1000)
        report("list files", 70, 0)
    assert stream.getvalue() == "decode images: 0 of 1,000 (0 %)\ndecode images: 1,000 of 1,000 (100 %)\nlist files: 70\n"


def test_progress_on_a_terminal_is_a_bar():
    stream = io.StringIO()
    stream.isatty = lambda: True
    with data_progress.shown(stream) as report:
        report("decode images", 500, 1000)
    assert "━" in stream.getvalue() and "500/1000" in stream.getvalue()
