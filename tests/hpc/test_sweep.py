"""Sweeps: what a YAML expands to, and every message of a faulty one, compared whole."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc.paths import WandbSettings
from hpc.sweep import SweepSpec, expand, explain_sweep, read_sweep, run_slug
from seresnet.config import run_id
from seresnet.config_file import read_run_config
from seresnet.errors import ConfigError

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("sweep_*.yaml"))

Read = Callable[..., SweepSpec]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    monkeypatch.chdir(tmp_path)

    def _read(text: str, *overrides: str, name: str = "sweep.yaml") -> SweepSpec:
        Path(name).write_text(text)
        return read_sweep(Path(name), overrides)

    return _read


def slugs(spec: SweepSpec) -> list[str]:
    return [run.slug for run in expand(spec)]


def test_golden_cases_are_all_there() -> None:
    assert len(CASES) >= 40, CASES


@pytest.mark.parametrize("case", CASES)
def test_message_of_a_faulty_sweep_is_the_golden_one(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(GOLDEN / f"{case}.yaml", tmp_path / "sweep.yaml")
    monkeypatch.chdir(tmp_path)
    kind, _, words = Path("sweep.yaml").read_text().partition("\n")[0].partition(": ")
    for name in words.split() if kind == "# files" else ():
        shutil.copy(GOLDEN / name, tmp_path / name)
    with pytest.raises(ConfigError) as caught:
        expand(read_sweep(Path("sweep.yaml"), words.split() if kind == "# overrides" else ()))
    assert f"{caught.value}\n" == (GOLDEN / f"{case}.txt").read_text()


def test_runs_come_arm_by_arm_and_seed_by_seed(read: Read) -> None:
    spec = read("arms: {b: {}, a: {model.attention: se}}\nseeds: [5, 1]")
    assert slugs(spec) == ["b-s5", "b-s1", "a-s5", "a-s1"]
    assert [run.config.train.seed for run in expand(spec)] == [5, 1, 5, 1]


def test_expand_gives_the_same_every_time(read: Read) -> None:
    spec = read("arms: {b: {}, a: {optim.lr: 0.2}}\nseeds: 3\ngrid: {optim.momentum: [0.8, 0.9]}")
    assert expand(spec) == expand(spec)
    assert len({run.run_id for run in expand(spec)}) == 12


def test_run_ids_are_those_of_the_single_runs(read: Read, tmp_path: Path) -> None:
    (run,) = expand(read("base: {optim.lr: 0.2}\narms: {se: {model.attention: se, seeds: [3]}}"))
    (tmp_path / "run.yaml").write_text("optim.lr: 0.2\nmodel.attention: se\ntrain.seed: 3")
    assert run.run_id == run_id(read_run_config(tmp_path / "run.yaml").config)


def test_equal_configs_are_one_run_of_several_arms(read: Read) -> None:
    runs = expand(read("arms: {se: {model.attention: se}, se-r16: {model.attention: se, model.reduction: 16}, plain: }\nseeds: 2"))
    assert [(run.slug, run.arms) for run in runs] == [
        ("se-s0", ("se", "se-r16")),
        ("se-s1", ("se", "se-r16")),
        ("plain-s0", ("plain",)),
        ("plain-s1", ("plain",)),
    ]


def test_later_layers_win(read: Read) -> None:
    spec = read("base: {optim: {lr: 0.1, momentum: 0.1, weight_decay: 0.1}}\narms: {a: {optim: {momentum: 0.2}}}", "optim.weight_decay=0.3")
    optim = spec.arms[0].loaded.config.optim
    assert (optim.lr, optim.momentum, optim.weight_decay) == (0.1, 0.2, 0.3)


def test_grid_makes_an_arm_of_every_point(read: Read) -> None:
    spec = read("arms: {se: {model.attention: se}}\ngrid: {optim: {lr: [0.05, 1e-1]}, model.blocks: [[1, 1], [2]]}")
    assert [arm.name for arm in spec.arms] == [
        "se lr=0.05 blocks=1-1",
        "se lr=0.05 blocks=2",
        "se lr=0.1 blocks=1-1",
        "se lr=0.1 blocks=2",
    ]
    assert slugs(spec)[0] == "se-lr-0.05-blocks-1-1-s0"
    assert [arm.loaded.config.optim.lr for arm in spec.arms] == [0.05, 0.05, 0.1, 0.1]


def test_seeds_of_an_arm_replace_those_of_the_sweep(read: Read) -> None:
    assert slugs(read("arms: {a: {}, b: {model.attention: se, seeds: 1}}\nseeds: 2")) == ["a-s0", "a-s1", "b-s0"]


def test_seeds_override_reaches_every_arm(read: Read) -> None:
    spec = read("arms: {a: {}, b: {model.attention: se, seeds: 1}}\nseeds: 2", "seeds=[7,8]")
    assert slugs(spec) == ["a-s7", "a-s8", "b-s7", "b-s8"]


def test_without_seeds_the_config_says_which(read: Read) -> None:
    assert slugs(read("base: {train.seed: 4}")) == ["sweep-s4"]
    assert slugs(read("base: {}")) == ["sweep-s0"]


def test_run_yaml_is_a_sweep_of_one_arm(read: Read) -> None:
    spec = read("model: {attention: se}\noptim.lr: 0.2", name="My Run_2.yaml")
    (run,) = expand(spec)
    assert (spec.name, run.slug, run.arms) == ("my-run-2", "my-run-2-s0", ("my-run-2",))
    assert (run.config.model.attention, run.config.optim.lr) == ("se", 0.2)


def test_run_yaml_takes_seeds_and_site_from_overrides(read: Read) -> None:
    spec = read("model: {attention: se}", "seeds=2", "site=local", "name=other")
    assert (spec.name, spec.site.asked, len(expand(spec))) == ("other", "local", 2)


def test_base_may_be_a_file_beside_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    Path("configs/run.yaml").write_text("optim.lr: 0.2\n")
    Path("configs/sweep.yaml").write_text("base: run.yaml\narms: {a: {optim.momentum: 0.5}}\n")
    spec = read_sweep(Path("configs/sweep.yaml"))
    assert spec.arms[0].loaded.origins["optim.lr"] == "configs/run.yaml:1"
    assert spec.arms[0].loaded.origins["optim.momentum"] == "configs/sweep.yaml:2"
    assert list(spec.texts) == ["configs/sweep.yaml", "configs/run.yaml"]


def test_copy_keeps_text_overrides_and_base(read: Read) -> None:
    Path("run.yaml").write_text("optim.lr: 0.2\n")
    text = "base: run.yaml  # why\narms: {a: {}}"
    assert read(text, "seeds=2").copy_text() == f"{text}\n# override: seeds=2\n# base: run.yaml\n#   optim.lr: 0.2\n"


def test_site_is_passed_on_with_its_places(read: Read) -> None:
    spec = read("base: {}\nsite:\n  extends: slurm\n  walltime_min: 60\n  no_such_key: [1, {a: b}]\n", "site.walltime_min=90")
    assert spec.site.asked == {"extends": "slurm", "walltime_min": 90, "no_such_key": [1, {"a": "b"}]}
    assert spec.site.where == "sweep.yaml:2"
    assert spec.site.origins["walltime_min"] == "override 'site.walltime_min=90'"
    assert spec.site.origins["extends"] == "sweep.yaml:3"


def test_site_override_adds_to_a_named_site(read: Read) -> None:
    assert read("base: {}\nsite: slurm", "site.account=lab").site.asked == {"extends": "slurm", "account": "lab"}
    assert read("base: {}", "site.account=lab").site.asked == {"account": "lab"}
    assert read("base: {}").site.asked is None


def test_pack_and_wandb_are_read(read: Read) -> None:
    spec = read("base: {}\npack.runs_per_task: 4\nwandb: {mode: offline, project: p}", "wandb.entity=lab")
    assert spec.pack.runs_per_task == 4
    assert spec.wandb == WandbSettings(mode="offline", project="p", entity="lab")
    assert read("base: {}").wandb == WandbSettings()


def test_sections_are_overridden_whole_or_key_by_key(read: Read) -> None:
    spec = read("base: {}\nwandb: {mode: offline, entity: lab}", "wandb={project: p}", "pack={runs_per_task: 2}", "site={account: a}")
    assert spec.wandb == WandbSettings(mode="offline", project="p", entity="lab")
    assert (spec.pack.runs_per_task, spec.site.asked) == (2, {"account": "a"})


@pytest.mark.parametrize(
    "override",
    [
        "wandb.project=KEY",
        "wandb={project: KEY}",
        "site.setup=[x KEY]",
        'site.setup=["export WANDB_API_KEY=\\"KEY\\""]',
        "site.setup=['A=\"KEY\"']",
        "wandb.project=local-KEY",
        "wandb.project=https://KEY@host/",
        "KEY=1",
        "wandb.KEY=1",
        "optim.lr=0.1  # KEY",
        "optim.lr=*KEY",
        "KEY",
    ],
)
@pytest.mark.parametrize("key", ["0123456789abcdef0123456789ABCDEF01234567", "wandb_v1_AbCdEfGhIjKlMnOpQrSt"])
def test_a_key_on_the_command_line_is_refused_and_not_shown(read: Read, override: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read("base: {}", override.replace("KEY", key).replace(f"WANDB_API_{key}", "WANDB_API_KEY"))
    assert key not in str(caught.value) and "(hidden)" in str(caught.value), caught.value


def test_a_key_in_a_line_of_setup_is_refused_in_a_file(read: Read) -> None:
    key = "0123456789abcdef0123456789abcdef01234567"
    for line in (f'export WANDB_API_KEY=\\"{key}\\"', f"wandb login {key};", f"(login {key})"):
        with pytest.raises(ConfigError, match=r"^sweep.yaml:3: site.setup: the value looks like a W&B key") as caught:
            read(f'base: {{}}\nsite:\n  setup: ["{line}"]\n')
        assert key not in str(caught.value), caught.value


def test_a_base_whose_name_is_too_long_for_a_file_is_refused(read: Read) -> None:
    with pytest.raises(ConfigError, match=r"^sweep.yaml:1: base: 'n+ \.\.\. is not a file"):
        read(f"base: {'n' * 300}")


def test_the_readme_shows_the_demo_without_its_comments_in_ten_lines() -> None:
    shown = (ROOT / "README.md").read_text().partition("```yaml\n")[2].partition("```")[0].splitlines()
    demo = [line.partition(" #")[0].rstrip() for line in (ROOT / "configs/demo.yaml").read_text().splitlines()]
    assert shown == [line for line in demo if line and not line.startswith("#")]
    assert len(shown) == 10


def test_long_arms_stay_apart_and_keep_their_seed() -> None:
    one, other = (run_slug("a" * 59 + letter, 12) for letter in "xy")
    assert one != other
    assert one.endswith("-s12") and len(one) <= 60


def test_explain_groups_arms_that_agree(read: Read) -> None:
    spec = read("arms:\n  a: {}\n  b: {optim.lr: 0.2}\n  c: {model.attention: se}\nseeds: 2")
    text = explain_sweep(spec, "optim.lr")
    assert text.startswith("a, c: optim.lr = 0.1\n  from     default")
    assert "\nb: optim.lr = 0.2\n  from     sweep.yaml:3" in text
    assert explain_sweep(spec, "train.amp").startswith("train.amp = bf16")
    assert "a: train.seed = 0, 1, from sweep.yaml:5" in explain_sweep(spec, "train.seed")


def test_two_experiments_under_one_id_are_refused(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = read("arms: {a: {}, b: {optim.lr: 0.2}}")
    monkeypatch.setattr("hpc.sweep.run_id", lambda config: "0" * 12)
    with pytest.raises(
        ConfigError, match=r"sweep.yaml:1: arms.b: this arm and 'a' have one run id 0{12} for two experiments: optim.lr 0.1 and 0.2"
    ):
        expand(spec)


def test_damaged_files_are_read_or_refused_with_a_place_but_never_crash(read: Read) -> None:
    draw = random.Random(0)
    originals = [path.read_bytes() for path in sorted([*ROOT.glob("configs/*.yaml"), *GOLDEN.glob("sweep_*.yaml")])]
    junk = [
        b"{",
        b"]",
        b":",
        b"\n",
        b"- ",
        b"&a ",
        b"*a",
        b"!x ",
        b"1e400",
        b"'",
        b"<<: ",
        b"? ",
        b"\0",
        b"\xff",
        b"---\n",
        b"seeds",
        b"9" * 30,
    ]
    refused = 0
    for _ in range(150):
        damaged = bytearray(draw.choice(originals))
        at = draw.randrange(len(damaged))
        damaged[at : at + draw.randrange(12)] = draw.choice(junk)
        Path("sweep.yaml").write_bytes(bytes(damaged))
        try:
            expand(read_sweep(Path("sweep.yaml")))
        except ConfigError as error:
            refused += 1
            assert str(error).startswith(("sweep.yaml:", "base_")), error
    assert 50 < refused < 150, refused


@pytest.mark.parametrize(
    ("name", "arms", "runs"),
    [
        ("baseline", 1, 1),
        ("seresnet", 1, 1),
        ("ablation", 15, 45),
        ("demo", 3, 5),
        ("cifar-small", 2, 4),
        ("paper", 2, 10),
        ("paper-1000", 1, 3),
        ("fast", 2, 6),
        ("attention", 11, 33),
    ],
)
def test_shipped_config_expands(name: str, arms: int, runs: int) -> None:
    spec = read_sweep(ROOT / "configs" / f"{name}.yaml")
    assert (spec.name, len(spec.arms), len(expand(spec))) == (name, arms, runs)


def test_shipped_recipes_differ_in_attention_only() -> None:
    baseline, seresnet = (read_run_config(ROOT / "configs" / f"{name}.yaml").config for name in ("baseline", "seresnet"))
    different = {
        f"{section}.{key}"
        for section in ("model", "data", "augment", "optim", "train")
        for key, value in vars(getattr(baseline, section)).items()
        if value != getattr(getattr(seresnet, section), key)
    }
    assert different == {"model.attention"}


def test_site_by_name_and_its_keys_are_one_request_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("base: {train.device: cpu}\nsite: {walltime_min: 9}\n")
    spec = read_sweep(tmp_path / "sweep.yaml", ["site=slurm", "site.partition=low"])
    assert spec.site.asked == {"walltime_min": 9, "extends": "slurm", "partition": "low"}, spec.site.asked
