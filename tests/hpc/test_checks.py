"""Warnings about a comparison: each appears where its cause is, and not where arms differ in what they are meant to differ in."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_sweep import FakeSweep

from hpc.checks import warnings
from hpc.comparison import compare
from hpc.gather import Gathered, gather
from seresnet.config import ModelConfig
from seresnet.run_folder import Parent


def gathered(root: Path, seeds: int = 3) -> Gathered:
    """Three arms of the same network but for what changed() does to their configs, all finished."""
    arms = {name: ModelConfig(width=width) for name, width in (("a", 4), ("b", 8), ("c", 16))}
    found = gather([FakeSweep(root, arms=arms, seeds=seeds).finish_all().folder.path])
    return changed(found, **{name: {"model.width": 4} for name in arms})


def changed(found: Gathered, **of_arm: dict[str, Any]) -> Gathered:
    """The same with other config values in an arm."""
    rows = []
    for row in found.rows:
        config = {section: dict(part) for section, part in (row.config or {}).items()}
        for key, value in of_arm.get(row.arms[0], {}).items():
            section, _, name = key.partition(".")
            config[section][name] = value
        rows.append(replace(row, config=config))
    return replace(found, rows=tuple(rows))


def with_results(found: Gathered, arm: str, **changes: Any) -> Gathered:
    rows = [replace(row, result=replace(row.result, **changes)) if row.arms == (arm,) and row.result else row for row in found.rows]
    return replace(found, rows=tuple(rows))


def without(found: Gathered, arm: str, *seeds: int) -> Gathered:
    rows = [replace(row, state="new", result=None) if row.arms == (arm,) and row.seed in seeds else row for row in found.rows]
    return replace(found, rows=tuple(rows))  # type: ignore[arg-type]


def said(found: Gathered, **more: Any) -> list[str]:
    return list(warnings(compare(found, **more)))


@pytest.mark.parametrize(
    "arms",
    [
        {},
        {"b": {"optim.lr": 0.2}, "c": {"optim.lr": 0.4}},  # a plain sweep of one key
        {"b": {"optim.lr": 0.2, "optim.warmup_epochs": 5}},  # of one section
        {"b": {"model.attention": "se", "model.reduction": 8}},
        {"b": {"augment.mix_prob": 0.0}, "c": {"model.attention": "se"}},
        {"b": {"train.ranks": 2, "train.threads": 4}},  # where and how, not what
    ],
)
def test_arms_that_change_one_thing_are_no_unequal_recipes(tmp_path: Path, arms: dict[str, Any]) -> None:
    assert said(changed(gathered(tmp_path), **arms)) == []


@pytest.mark.parametrize(
    ("arms", "keys"),
    [
        ({"b": {"model.attention": "se", "optim.lr": 0.2}}, "model.attention, optim.lr"),
        ({"b": {"train.epochs": 12}}, "train.epochs"),
        ({"b": {"data.train_images": 100}}, "data.train_images"),
        ({"b": {"train.global_batch_size": 64}}, "train.global_batch_size"),
        ({"b": {"model.attention": "se", "augment.mix_prob": 0.5}}, "model.attention, augment.mix_prob"),
    ],
)
def test_arms_that_differ_in_several_sections_data_epochs_or_batch_are_named(tmp_path: Path, arms: dict[str, Any], keys: str) -> None:
    (found,) = said(changed(gathered(tmp_path), **arms))
    assert found.startswith(f"UNEQUAL RECIPES: b differs from a in {keys} (")
    assert all(f"{key}: {value} against " in found for key, value in arms["b"].items())


def test_a_grid_whose_parts_are_there_alone_is_no_unequal_recipe(tmp_path: Path) -> None:
    both = {"model.attention": "se", "optim.lr": 0.2}
    arms = {name: ModelConfig(width=width) for name, width in (("a", 4), ("b", 8), ("c", 16), ("d", 32))}
    found = gather([FakeSweep(tmp_path, arms=arms).finish_all().folder.path])
    whole = changed(found, **{name: {"model.width": 4} for name in arms})
    whole = changed(whole, b={"model.attention": "se"}, c={"optim.lr": 0.2}, d=both)
    assert said(whole) == []
    assert said(changed(whole, c={"optim.lr": 0.4}))[0].startswith("UNEQUAL RECIPES: d differs from a in model.attention, optim.lr")


def test_a_config_from_before_a_key_was_there_ran_with_its_default(tmp_path: Path) -> None:
    found = gathered(tmp_path)
    rows = []
    for row in found.rows:
        config = {section: dict(part) for section, part in (row.config or {}).items()}
        if row.arms == ("b",):
            del config["optim"]["momentum"], config["augment"]["flip"]
        rows.append(replace(row, config=config))
    older = replace(found, rows=tuple(rows))
    assert said(older) == []
    assert "augment.flip: true against false" in said(changed(older, a={"augment.flip": False, "optim.momentum": 0.5}))[0]


def test_arms_with_the_same_keys_are_one_warning(tmp_path: Path) -> None:
    found = changed(gathered(tmp_path), b={"train.epochs": 12}, c={"train.epochs": 24})
    (one,) = said(found)
    assert one.startswith("UNEQUAL RECIPES: b, c differ from a in train.epochs (train.epochs: 12 against 6 of b)")


def test_groups_are_meant_to_differ_in_their_keys(tmp_path: Path) -> None:
    found = changed(gathered(tmp_path), b={"train.epochs": 12, "optim.lr": 0.2}, c={"train.epochs": 24, "optim.lr": 0.3})
    assert said(found, by=["train.epochs", "optim.lr"]) == []
    assert said(found, by=["optim.lr"])[0].startswith("UNEQUAL RECIPES: optim.lr=0.2, optim.lr=0.3 differ from optim.lr=0.1 in ")


def test_an_arm_whose_own_runs_differ_is_named(tmp_path: Path) -> None:
    found = gathered(tmp_path)
    rows = [changed(replace(found, rows=(row,)), b={"optim.lr": 0.5}).rows[0] if row.seed == 2 else row for row in found.rows]
    texts = said(replace(found, rows=tuple(rows)))
    assert any(text.startswith("MIXED ARM: runs of b differ in optim.lr: 0.1, 0.5.") and "--by optim.lr" in text for text in texts)


def test_seeds_that_repeat_in_a_group_name_the_key_to_group_by(tmp_path: Path) -> None:
    found = changed(gathered(tmp_path), b={"model.attention": "se"}, c={"model.attention": "se", "optim.lr": 0.2})
    (one,) = [text for text in said(found, by=["model.attention"]) if text.startswith("NOT PAIRED")]
    assert "in model.attention=se a seed occurs more than once" in one and "--by model.attention,optim.lr pairs them" in one


def test_missing_seeds_are_named_with_their_arms(tmp_path: Path) -> None:
    found = without(without(gathered(tmp_path, seeds=5), "b", 0, 1, 4), "c", 0, 1, 4)
    assert said(found)[0].startswith("MISSING SEEDS: b, c have no finished run of seed 0-1, 4, which other arms have.")


def test_one_run_is_no_comparison(tmp_path: Path) -> None:
    assert said(gathered(tmp_path, seeds=1))[0].startswith("ONE RUN: a, b, c have one finished run (n = 1)")


def test_diverged_runs_flatter_their_arm(tmp_path: Path) -> None:
    found = gathered(tmp_path)
    rows = [
        replace(row, state="failed", ending="diverged", result=None) if (row.arms, row.seed) == (("b",), 1) else row for row in found.rows
    ]
    assert said(replace(found, rows=tuple(rows)))[0].startswith("DIVERGED: 1 of b. Their arms' means are over the runs that survived")


@pytest.mark.parametrize(("best", "seeds", "warns"), [(90.1, 3, False), (90.3, 3, True), (90.4, 1, False), (90.6, 1, True)])
def test_best_on_test_is_measured_against_the_spread_of_the_last_epoch(tmp_path: Path, best: float, seeds: int, warns: bool) -> None:
    found = with_results(gathered(tmp_path, seeds), "b", last_test_top1_pct=90.0, best_on_test_top1_pct=best)  # std 0: the floors count
    texts = [text for text in said(found) if text.startswith("BEST FAR ABOVE LAST")]
    assert bool(texts) is warns
    assert not warns or f"(b by {best - 90:.2f} points, limit {0.2 if seeds > 1 else 0.5:.2f})" in texts[0]


def test_two_standard_deviations_are_the_limit_where_seeds_vary(tmp_path: Path) -> None:
    found = gathered(tmp_path)
    for gap, warns in ((1.9, False), (2.1, True)):  # the last epochs are 89, 90 and 91: their standard deviation is 1
        rows = [
            replace(
                row,
                result=replace(row.result, last_test_top1_pct=89.0 + (row.seed or 0), best_on_test_top1_pct=89.0 + (row.seed or 0) + gap),
            )
            if row.arms == ("b",) and row.result
            else row
            for row in found.rows
        ]
        texts = said(replace(found, rows=tuple(rows)))
        assert any(text.startswith("BEST FAR ABOVE LAST") for text in texts) is warns, gap


def test_without_a_validation_split_only_the_test_set_chooses(tmp_path: Path) -> None:
    found = with_results(gathered(tmp_path), "b", val_chosen_test_top1_pct=None)
    assert said(found)[0].startswith("NO VALIDATION: b has no validation split")
    assert said(gathered(tmp_path / "2"), metrics=["best_on_test_top1_pct"])[0].startswith("CHOSEN ON TEST")


def test_forks_and_averaged_weights_are_named(tmp_path: Path) -> None:
    parent = Parent(run_id="0123456789ab", slug="old", step=20, checkpoint="x", state_digest="y")
    assert any("FORK: in b b-seed0" in text and "began as run 0123456789ab (old) at step 20" in text
               for text in said(with_results(gathered(tmp_path), "b", parent=parent)))  # fmt: skip
    averaged = with_results(gathered(tmp_path / "2"), "b", averaged=True)
    assert said(averaged)[0].startswith("AVERAGED IN SOME: the numbers of b are those of averaged weights (optim.ema_decay), those of a, c")
    everywhere = with_results(with_results(averaged, "a", averaged=True), "c", averaged=True)
    assert said(everywhere) == []
