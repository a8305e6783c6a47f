"""Sites: layers, automatic choice, strictness. Each test has its own HOME and its own PATH."""

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from hpc.shapes import TaskShape
from hpc.site import SHIPPED, Site, read_site, require_account, require_sbatch
from hpc.slurm import script
from hpc.sweep import read_sweep
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
        f'{path}:3: site.qos: 3 is a whole number, text or null is wanted. Write "3" in quotes, if it is meant.',
        f"{path}:4: site.walltime_min: '1:30' is text, a whole number is wanted. Write it in plain decimal digits.",
        f"{path}:5: site.cpus_per_rank: 0 is out of range. Use a number that is at least 1.",
        f"{path}:6: site.scheduler: 'slrm' is not one of slurm, local. Did you mean slurm?",
        f"{path}:7: site.setup: 'module load x' is text, a list of lines is wanted. Write one `- line` each.",
        lines[-1],
    ]
    assert lines[-1].startswith("s.yaml:3: site.requeu: no such key. Keys of a site: name, scheduler, account, "), lines[-1]


def test_single_keys_are_blamed_on_their_own_lines(machine: Machine) -> None:
    with pytest.raises(ConfigError, match=r"^s\.yaml:9: site\.walltime_mn: no such key\. Did you mean walltime_min\?$"):
        read_site({"walltime_mn": 3}, origins={"walltime_mn": "s.yaml:9"}, environ=machine.environ)


def test_an_unknown_site_is_answered_with_the_nearest_and_the_list(machine: Machine) -> None:
    assert "s.yaml:3: site 'slrm' is not known. Did you mean slurm? Sites: local, nyu-greene, nyu-torch, slurm" in faults(machine, "slrm")


def test_a_loop_of_extends_is_named(machine: Machine, tmp_path: Path) -> None:
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    a.write_text(f"extends: {b}\n")
    b.write_text(f"extends: {a}\n")
    assert "a -> b -> a" in faults(machine, str(a))


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_site_can_be_read_and_scripted(machine: Machine, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    site = machine.read(path.stem)
    assert site.name == path.stem
    text = script(Path("logs"), Path("code"), site, TaskShape(ranks=2, gpus=2), "demo", 3)
    assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).stderr == ""


def test_the_shipped_sites_are_the_four_that_are_promised() -> None:
    assert [path.stem for path in sorted(SHIPPED.glob("*.yaml"))] == ["local", "nyu-greene", "nyu-torch", "slurm"]


def test_what_is_commented_out_in_a_shipped_site_can_be_used_as_it_stands(machine: Machine, tmp_path: Path) -> None:
    # A key in a comment that does not exist any more would send its reader the wrong way.
    for path in SHIPPED.glob("*.yaml"):
        text = re.sub(r"^# (?=(\w+): *\S)(?!extends|account: YOUR)", "", path.read_text(), flags=re.MULTILINE)
        (tmp_path / path.name).write_text(text)
        assert machine.read(str(tmp_path / path.name)).name == path.stem


def test_a_missing_account_is_refused_naming_the_command_that_lists_them(machine: Machine) -> None:
    with pytest.raises(ConfigError, match=r"account is required and not set. `sacctmgr .*associations"):
        require_account(machine.read("nyu-torch"))
    require_account(machine.read({"extends": "nyu-torch", "account": "mine"}))
    require_account(machine.read("slurm"))


def test_the_advice_for_a_missing_account_works_word_for_word(machine: Machine) -> None:
    with pytest.raises(ConfigError) as caught:
        require_account(machine.read("nyu-torch"))
    line = str(caught.value).partition("put `")[2].partition("`")[0]
    machine.personal.write_text(line + "\n")
    require_account(machine.read("nyu-torch"))


def test_a_personal_file_without_extends_joins_every_slurm_site_and_chooses_none(machine: Machine) -> None:
    machine.personal.write_text("account: lab\n")
    assert (machine.read().name, machine.read().account) == ("local", None)
    assert (machine.read("nyu-torch").name, machine.read("nyu-torch").account) == ("nyu-torch", "lab")
    machine.add_sbatch()
    assert (machine.read().name, machine.read().account) == ("slurm", "lab")
    assert machine.read({"account": "mine"}).account == "mine"


def test_faults_of_a_personal_file_without_extends_are_told(machine: Machine) -> None:
    machine.personal.write_text("acount: lab\n")
    assert f"{machine.personal}:1: site.acount: no such key. Did you mean account?" in faults(machine, "slurm")


def test_a_personal_file_joins_the_site_that_it_extends_by_path_also_through_a_link(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text("extends: slurm\npartition: low\n")
    (tmp_path / "dotfile.yaml").write_text(f"extends: {tmp_path}/lab.yaml\naccount: me\n")
    machine.personal.symlink_to(tmp_path / "dotfile.yaml")
    joined = machine.read(str(tmp_path / "lab.yaml"))
    assert (joined.name, joined.account, machine.read("slurm").account) == ("lab", "me", None)
    machine.add_sbatch()
    assert machine.read() == joined


def test_paths_of_sites_are_relative_to_the_file_that_says_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "sweeps/a.yaml": "base: {}\nsite: ../sites/mine.yaml\n",
        "sweeps/b.yaml": "base: {}\nsite: {extends: ../sites/mine.yaml, qos: q}\n",
        "sites/mine.yaml": "extends: below/other.yaml\n",
        "sites/below/other.yaml": "extends: slurm\npartition: low\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for sweep, overrides in (("a", ()), ("b", ()), ("b", ["site=sites/mine.yaml"])):
        request = read_sweep(Path("sweeps") / f"{sweep}.yaml", overrides).site
        assert read_site(request.asked, where=request.where, origins=request.origins).partition == "low"


@pytest.mark.parametrize("name", ["a/" + "n" * 300, "n" * 300, "~nobody-of-that-name/x.yaml"])
def test_a_site_that_cannot_be_a_file_is_refused_and_does_not_crash(machine: Machine, name: str) -> None:
    assert "s.yaml:3: site " in faults(machine, name)


def test_options_of_sbatch_are_added_one_by_one_nested_or_dotted(machine: Machine) -> None:
    machine.personal.write_text("sbatch: {nice: 10, reservation: a}\n")
    site = machine.read({"extends": "slurm", "sbatch.reservation": "b", "sbatch": {"exclusive": True}})
    assert site.sbatch == {"nice": 10, "reservation": "b", "exclusive": True}
    assert "s.yaml:3: site.sbatch.x y: no option of sbatch" in faults(machine, {"sbatch.x y": 1})
    assert "s.yaml:3: site.sbatch: 3 is not a mapping" in faults(machine, {"sbatch": 3})
    assert "s.yaml:3: site.sbatch.nice: 1.5 is a decimal number, text or a whole number" in faults(machine, {"sbatch": {"nice": 1.5}})


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\u2028b", "a\x1bb"])
@pytest.mark.parametrize("key", ["account", "name", "data_dir", "sbatch.reservation", "setup"])
def test_a_control_character_in_any_text_is_refused(machine: Machine, key: str, text: str) -> None:
    found = faults(machine, {key: ["true", text] if key == "setup" else text})
    assert found.startswith(f"s.yaml:3: site.{key}: ") and "control character" in found and text not in found, found


@pytest.mark.parametrize("line", ["export HF_TOKEN=hf_abcdef", "A=1 DB_PASSWORD='hunter2' run", "export WANDB_API_KEY=x1y", 'MY_KEY="abc'])
def test_setup_that_sets_a_secret_is_refused_and_not_shown(machine: Machine, line: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("base: {}\n")
    request = read_sweep(tmp_path / "sweep.yaml", [f"site.setup=[{line!r}]"]).site
    with pytest.raises(ConfigError, match="is set to what may be a secret") as caught:
        read_site(request.asked, where=request.where, origins=request.origins, environ=machine.environ)
    assert line.rpartition("=")[2] not in str(caught.value), caught.value
    assert "=$(cat FILE)" in faults(machine, {"sbatch.export": line})


def test_setup_may_read_a_secret_from_a_file_and_set_what_only_sounds_like_one(machine: Machine) -> None:
    lines = ["export WANDB_API_KEY=$(cat ~/.key)", "export TOKENIZERS_PARALLELISM=false MAX_TOKENS=4096", "sort --key=two", "KEY=~/k"]
    assert machine.read({"setup": lines}).setup == tuple(lines)
    assert machine.read({"setup": []}).setup == ()


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


def test_nyu_torch_asks_for_preemptible_gpus_in_the_sites_own_words(machine: Machine) -> None:
    site = machine.read({"extends": "nyu-torch", "account": "mine"})
    assert site.comment == {"preemption": "yes", "requeue": True} and site.preemption == "requeue"
    assert site.low_use_pct == {"h100": 60, "h200": 60, "a100": 50, "l40s": 50} and site.low_use_window_min == 120
    assert (site.partition, site.gpu_request, site.preemptible_after_min) == (None, "gres", 30)


def test_a_partition_chooses_the_account_that_is_charged(machine: Machine) -> None:
    base = {"extends": "slurm", "account": "lab", "partition_accounts": {"h200": "lab_h200"}}
    assert machine.read({**base, "partition": "h200"}).charged_account == "lab_h200"
    assert machine.read({**base, "partition": ["a100", "cpu"]}).charged_account == "lab"
    assert machine.read(base).charged_account == "lab" and machine.read(base).partitions == ()
    assert machine.read({**base, "partition": "a100,cpu"}).partitions == ("a100", "cpu")


def test_entries_of_mappings_are_joined_over_layers_and_a_comment_is_replaced(machine: Machine) -> None:
    machine.personal.write_text("low_use_pct: {h100: 70}\npartition_accounts: {a: x}\ncomment: {a: 1}\n")
    asked = {"extends": "nyu-torch", "low_use_pct.b200": 40, "partition_accounts": {"b": "y"}, "comment": {"c": False}}
    machine.personal.write_text("extends: nyu-torch\n" + machine.personal.read_text())
    site = machine.read(asked)
    assert site.low_use_pct == {"h100": 70, "h200": 60, "a100": 50, "l40s": 50, "b200": 40}
    assert site.partition_accounts == {"a": "x", "b": "y"} and site.comment == {"c": False}


def test_a_site_knows_who_wrote_each_key_and_keeps_it_out_of_the_record(machine: Machine) -> None:
    machine.personal.write_text("\n\nqos: gpu48\nsbatch: {nice: 3}\n")
    site = machine.read({"extends": "slurm", "walltime_min": 7})
    assert site.place("walltime_min") == "s.yaml:3" and site.place("qos") == f"{machine.personal}:3"
    assert site.place("account") == "site slurm" and site.place("sbatch.nice") == f"{machine.personal}:4"
    assert "places" not in site.to_dict() and site == Site(**{**site.to_dict(), "places": {}, **_tuples(site)})


def _tuples(site: Site) -> dict[str, tuple[str, ...]]:
    return {key: tuple(value) for key, value in site.to_dict().items() if isinstance(value, list)}
