"""Grid, zip and random of a sweep: which runs they make, against itertools and zip, and where each value says it comes from."""

import itertools
from pathlib import Path

import pytest
from sweep_text import expand_text, read_text

from hpc.sweep import explain_sweep
from hpc.sweep_draws import Law, draw_choices, draw_numbers

RANDOM = """
base: {{}}
random:
  count: {count}
  seed: {seed}
  keys:
    optim.lr: {{log_uniform: [0.01, 1.0]}}
{more}
"""


def random_sweep(count: int, seed: int = 0, more: str = "") -> str:
    return RANDOM.format(count=count, seed=seed, more=more)


def test_zip_is_pythons_zip(tmp_path: Path) -> None:
    lrs, momenta, blocks = [0.1, 0.2, 0.4], [0.9, 0.8, 0.9], [(1, 1), (2,), (2,)]
    text = "base: {}\nzip:\n  optim: {lr: [0.1, 0.2, 4e-1], momentum: [0.9, 0.8, 0.9]}\n  model.blocks: [[1, 1], [2], [2]]\n"
    configs = [run.config for run in expand_text(tmp_path, text)]
    assert [(c.optim.lr, c.optim.momentum, c.model.blocks) for c in configs] == list(zip(lrs, momenta, blocks, strict=True))


def test_two_zips_a_grid_and_draws_are_a_product(tmp_path: Path) -> None:
    text = """
arms: {plain: {}, se: {model.attention: se}}
zip:
  - {optim.lr: [0.1, 0.2], optim.momentum: [0.9, 0.8]}
  - {train.epochs: [20, 30], optim.warmup_epochs: [2, 3]}
grid: {model.width: [16, 32, 64]}
random: {count: 4, keys: {optim.weight_decay: {uniform: [0, 1e-3]}}}
seeds: 2
"""
    decays = draw_numbers(Law(kind="uniform", low=0, high=1e-3), 0, "optim.weight_decay", 4)
    wanted = list(itertools.product(["none", "se"], [16, 32, 64], [(0.1, 0.9), (0.2, 0.8)], [(20, 2), (30, 3)], decays, [0, 1]))
    found = [
        (
            c.model.attention,
            c.model.width,
            (c.optim.lr, c.optim.momentum),
            (c.train.epochs, c.optim.warmup_epochs),
            c.optim.weight_decay,
            c.train.seed,
        )
        for c in (run.config for run in expand_text(tmp_path, text))
    ]
    assert len(found) == 192 and found == wanted


def test_arms_are_named_after_every_key_of_their_point(tmp_path: Path) -> None:
    text = "arms: {se: {model.attention: se}}\nzip: {optim.lr: [0.1, 0.2], model.blocks: [[1, 1], [2]]}\ngrid: {model.width: [16]}"
    spec = read_text(tmp_path, text)
    assert [arm.name for arm in spec.arms] == ["se width=16 lr=0.1 blocks=1-1", "se width=16 lr=0.2 blocks=2"]


def test_another_key_or_more_draws_change_no_earlier_draw(tmp_path: Path) -> None:
    few = [run.config.optim.lr for run in expand_text(tmp_path, random_sweep(5))]
    many = expand_text(tmp_path, random_sweep(9, more="    model.reduction: {choice: [4, 8, 16]}"))
    assert few == [run.config.optim.lr for run in many][:5]
    assert [run.config.model.reduction for run in many] == [(4, 8, 16)[i] for i in draw_choices(3, 0, "model.reduction", 9)]


def test_draws_do_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    one = "    optim.momentum: {uniform: [0.5, 0.9]}\n    model.width: {uniform: [8, 64]}"
    other = "\n".join(reversed(one.split("\n")))
    runs = [{run.run_id for run in expand_text(tmp_path, random_sweep(6, more=more))} for more in (one, other)]
    assert runs[0] == runs[1] and len(runs[0]) == 6


def test_every_arm_gets_the_same_draws(tmp_path: Path) -> None:
    text = random_sweep(3).replace("base: {}", "arms: {plain: {}, se: {model.attention: se}}")
    lrs = [run.config.optim.lr for run in expand_text(tmp_path, text)]
    assert lrs[:3] == lrs[3:] and len(set(lrs)) == 3


def test_count_and_seed_of_draws_may_be_overridden(tmp_path: Path) -> None:
    runs = expand_text(tmp_path, random_sweep(2), "random.count=4", "random.seed=1")
    assert [run.config.optim.lr for run in runs] == draw_numbers(Law(kind="log_uniform", low=0.01, high=1.0), 1, "optim.lr", 4)


def test_equal_draws_are_one_run(tmp_path: Path) -> None:
    runs = expand_text(tmp_path, "base: {}\nrandom: {count: 30, keys: {model.reduction: {choice: [4, 8]}}}")
    assert sorted(run.config.model.reduction for run in runs) == [4, 8]
    assert [len(run.arms) for run in runs] == [1, 1]


@pytest.mark.parametrize(
    "axis",
    [
        "grid: {model.reduction: [8, 16]}",
        "zip: {model.reduction: [8, 16], optim.lr: [0.1, 0.2]}",
        "random: {count: 20, keys: {model.reduction: {choice: [8, 16]}}}",
    ],
)
def test_equal_arms_share_the_runs_of_every_axis_and_keep_both_names(tmp_path: Path, axis: str) -> None:
    runs = expand_text(
        tmp_path, f"arms: {{a: {{model.attention: se}}, b: {{model.attention: se, optim.momentum: 9e-1}}}}\n{axis}\nseeds: 2"
    )
    assert len(runs) == 4 == len({run.run_id for run in runs})
    assert all([arm.partition(" ")[0] for arm in run.arms] == ["a", "b"] for run in runs), [run.arms for run in runs]


def test_a_point_that_is_an_arm_already_is_one_run(tmp_path: Path) -> None:
    """Arm b at lr 0.1 is arm a at lr 0.1; the points differ in nothing that the default does not say."""
    runs = expand_text(tmp_path, "base: {model.attention: se}\narms: {a: {}, b: {model.reduction: 16}}\ngrid: {optim.lr: [0.1, 0.2]}")
    assert [run.arms for run in runs] == [("a lr=0.1", "b lr=0.1"), ("a lr=0.2", "b lr=0.2")]


def test_explain_names_the_line_of_zips_and_draws(tmp_path: Path) -> None:
    spec = read_text(tmp_path, "base: {}\nzip:\n  optim.momentum:\n    - 0.8\n    - 0.9\n" + random_sweep(2).removeprefix("\nbase: {}\n"))
    assert explain_sweep(spec, "optim.momentum").count(f"from     {tmp_path}/sweep.yaml:3\n") == 2
    text = explain_sweep(spec, "optim.lr")
    assert text.count("optim.lr = ") == 2 and text.count(f"from     {tmp_path}/sweep.yaml:10\n") == 2, text


def test_long_names_of_a_large_grid_stay_apart(tmp_path: Path) -> None:
    some = "[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]"
    keys = ("optim.weight_decay", "optim.label_smoothing", "augment.mixup_alpha", "augment.cutmix_share")
    text = "arms: {squeeze-excitation: {}}\ngrid:\n" + "".join(f"  {key}: {some}\n" for key in keys)
    runs = expand_text(tmp_path, text)
    assert len(runs) == 8**4 == len({run.slug for run in runs})
    assert max(len(run.slug) for run in runs) <= 60
