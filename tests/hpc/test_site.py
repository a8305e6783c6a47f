"""Sites: layers, automatic choice, strictness. Each test has its own HOME and its own PATH."""

import os
import stat
from pathlib import Path

import pytest

from hpc.site import SHIPPED, Site, read_site, require_account, require_sbatch, site_from_dict
from seresnet.errors import ConfigError


class Machine:
    """A login node as read_site sees it: an environment, a personal file or none, an sbatch or none."""

    def __init__(self, root: Path) -> None:
        self.bin, self.personal = root / "bin", root / "home" / ".config" / "hpc" / "site.yaml"
        self.bin.mkdir()
        self.personal.parent.mkdir(parents=True)
        self.environ = {"HOME": str(root / "home"), "PATH": str(self.bin)}

    def add_sbatch(self) -> None:
        (self.bin / "sbatch").write_text("#!/bin/sh\nexit 1\n")
        (self.bin / "sbatch").chmod(stat.S_IRWXU)

    def read(self, asked: object = None) -> Site:
        return read_site(asked, where="s.yaml:3", environ=self.environ)  # type: ignore[arg-type]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def faults(machine: Machine, asked: object) -> str:
    with pytest.raises(ConfigError) as caught:
        machine.read(asked)
    return str(caught.value)


def test_automatic_choice_follows_sbatch(machine: Machine) -> None:
    assert (machine.read().name, machine.read().scheduler) == ("local", "local")
    machine.add_sbatch()
    assert (machine.read().name, machine.read().scheduler) == ("slurm", "slurm")


def test_the_sweeps_own_values_win_over_the_site(machine: Machine) -> None:
    site = machine.read({"extends": "slurm", "walltime_min": 7})
    assert (site.name, site.walltime_min, site.gpu_request) == ("slurm", 7, "gres")


def test_a_personal_file_is_the_automatic_choice_and_keeps_the_name_of_its_base(machine: Machine) -> None:
    machine.add_sbatch()
    machine.personal.write_text("extends: nyu-torch\naccount: torch_pr_1\n")
    site = machine.read()
    assert (site.name, site.account, site.constraint) == ("nyu-torch", "torch_pr_1", "h200|l40s|a100|h100")


def test_personal_values_join_a_site_that_is_asked_for_by_name(machine: Machine) -> None:
    machine.personal.write_text("extends: nyu-torch\naccount: torch_pr_1\nwalltime_min: 99\n")
    assert machine.read("nyu-torch").account == "torch_pr_1"
    assert machine.read({"extends": "nyu-torch", "walltime_min": 5}).walltime_min == 5
    assert machine.read("local").account is None


def test_a_personal_cluster_is_not_chosen_on_a_laptop(machine: Machine) -> None:
    machine.personal.write_text("extends: nyu-torch\naccount: a\n")
    assert machine.read().scheduler == "local"


def test_every_fault_of_every_layer_is_told_at_once_with_its_line(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: slurm\nacount: x\nqos: 3\nwalltime_min: 1:30\ncpus_per_rank: 0\nscheduler: slrm\nsetup: module load x\n")
    lines = faults(machine, {"extends": str(path), "requeu": True}).splitlines()
    assert lines == [
        f"{path}:2: site.acount: no such key. Did you mean account?",
        f"{path}:3: site.qos: 3 is not text. Put it in quotes.",
        f"{path}:4: site.walltime_min: '1:30' is not a whole number.",
        f"{path}:5: site.cpus_per_rank: 0 is out of range. Use 1 or more.",
        f"{path}:6: site.scheduler: 'slrm' is not one of slurm, local. Did you mean slurm?",
        f"{path}:7: site.setup: 'module load x' is not a list of lines. Write one `- line` each.",
        "s.yaml:3: site.requeu: no such key.",
    ]


def test_single_keys_are_blamed_on_their_own_lines(machine: Machine) -> None:
    with pytest.raises(ConfigError, match=r"^s\.yaml:9: site\.walltime_mn: no such key\. Did you mean walltime_min\?$"):
        read_site({"walltime_mn": 3}, origins={"walltime_mn": "s.yaml:9"}, environ=machine.environ)


def test_an_unknown_site_is_answered_with_the_nearest_and_the_list(machine: Machine) -> None:
    assert "s.yaml:3: site 'slrm' is not known. Did you mean slurm? Sites: local, nyu-torch, slurm" in faults(machine, "slrm")


def test_a_loop_of_extends_is_named(machine: Machine, tmp_path: Path) -> None:
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    a.write_text(f"extends: {b}\n")
    b.write_text(f"extends: {a}\n")
    assert "a -> b -> a" in faults(machine, str(a))


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_site_can_be_read_and_comes_back_from_its_record(machine: Machine, path: Path) -> None:
    site = machine.read(path.stem)
    assert site.name == path.stem
    assert site_from_dict(site.to_dict()) == site


def test_a_missing_account_is_refused_naming_the_command_that_lists_them(machine: Machine) -> None:
    with pytest.raises(ConfigError, match=r"account is required and not set. `sacctmgr .*associations"):
        require_account(machine.read("nyu-torch"))
    require_account(machine.read({"extends": "nyu-torch", "account": "mine"}))
    require_account(machine.read("slurm"))


def test_a_slurm_site_without_sbatch_is_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(machine.bin))
    with pytest.raises(ConfigError, match=r"sbatch is not on PATH.*--local"):
        require_sbatch(machine.read("slurm"))
    machine.add_sbatch()
    require_sbatch(machine.read("slurm"))


def test_folders_expand_variables_and_name_the_one_that_is_missing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    site = machine.read("nyu-torch")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    assert site.folder("data_dir") == Path("/scratch/me/data")
    monkeypatch.delenv("SCRATCH")
    with pytest.raises(ConfigError, match=r"needs \$SCRATCH, which is not set here"):
        site.folder("data_dir")
    assert os.environ.get("SCRATCH") is None


def test_a_walltime_that_leaves_no_time_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a\.yaml:3: site\.walltime_min: 1 leaves no time to train: .* Use 4 or more\."):
        read_site({"extends": "slurm", "walltime_min": 1}, where="a.yaml:3")
    assert read_site({"extends": "slurm", "walltime_min": 4}).walltime_min == 4
    assert read_site({"extends": "local", "walltime_min": 1}).scheduler == "local"
