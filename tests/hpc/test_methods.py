"""The methods paragraph and the bibliography: what a config uses is named and cited, by all runs or by some, and nothing else is."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from made_rows import made_row

from hpc import bibliography, methods, methods_recipe, settings
from hpc.comparison import compare
from hpc.gather import Gathered

#: Nothing that anybody has to be cited for but the residual network itself.
PLAIN = {
    "model.attention": "none", "optim.schedule": "constant", "train.amp": "off", "augment.autoaugment": "none", "augment.mix_prob": 0.0,
}  # fmt: skip
#: Entry of the bibliography -> how the paragraph cites it, and the keys that use it.
USES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "hu2018squeeze": ("Hu et al., 2018", {"model.attention": "se"}),
    "wang2020eca": ("Wang et al., 2020", {"model.attention": "eca"}),
    "woo2018cbam": ("Woo et al., 2018", {"model.attention": "cbam"}),
    "roy2018concurrent": ("Roy et al., 2018", {"model.attention": "scse"}),
    "yang2021simam": ("Yang et al., 2021", {"model.attention": "simam"}),
    "huang2016deep": ("Huang et al., 2016", {"model.drop_path": 0.1}),
    "zhang2018mixup": ("Zhang et al., 2018", {"augment.mix_prob": 0.5, "augment.cutmix_share": 0.0}),
    "yun2019cutmix": ("Yun et al., 2019", {"augment.mix_prob": 0.5, "augment.cutmix_share": 1.0}),
    "cubuk2019autoaugment": ("Cubuk et al., 2019", {"augment.autoaugment": "cifar10"}),
    "hendrycks2020augmix": ("Hendrycks et al., 2020", {"augment.augmix_severity": 3}),
    "lopes2019patch": ("Lopes et al., 2019", {"augment.noise_std": 0.1}),
    "loshchilov2017sgdr": ("Loshchilov & Hutter, 2017", {"optim.schedule": "restarts"}),
    "tarvainen2017mean": ("Tarvainen & Valpola, 2017", {"optim.ema_decay": 0.999}),
    "micikevicius2018mixed": ("Micikevicius et al., 2018", {"train.amp": "bf16"}),
    "szegedy2016rethinking": ("Szegedy et al., 2016", {"optim.label_smoothing": 0.1}),
}


def gathered(*arms: Mapping[str, Any]) -> Gathered:
    """A run an arm, of the default recipe with these keys."""
    rows = []
    for number, keys in enumerate(arms):
        row = made_row(f"arm{number}", 0, 40)
        assert row.config is not None
        config = {section: dict(part) for section, part in row.config.items()}
        for key, value in {**PLAIN, **keys}.items():
            section, _, name = key.partition(".")
            config[section][name] = value
        rows.append(replace(row, config=config))
    return Gathered(arms=tuple(f"arm{number}" for number in range(len(arms))), rows=tuple(rows), skipped=())


def said_and_cited(*arms: Mapping[str, Any]) -> tuple[str, list[str]]:
    found = gathered(*arms)
    entries = bibliography.bibtex(settings.configs_of(found.rows))
    return methods.paragraph(compare(found)), re.findall(r"@\w+\{(\S+),", entries)


def cited_in(text: str) -> set[str]:
    """Every (Name et al., year) of a text, also two of them in one pair of brackets."""
    return set(re.findall(r"[A-Z]\w+(?: et al\.| & [A-Z]\w+), \d{4}", text))


def test_every_work_of_the_bibliography_is_tried() -> None:
    assert {work.key for work in bibliography.WORKS} - {"hpc-seresnet", "he2016deep"} == set(USES)


@pytest.mark.parametrize("key", USES)
@pytest.mark.parametrize("others", [0, 1], ids=["by all", "by some"])
def test_what_a_config_uses_is_named_and_cited_and_nothing_else(key: str, others: int) -> None:
    words, keys = USES[key]
    said, cited = said_and_cited(*[{}] * others, keys)
    assert cited == ["hpc-seresnet", "he2016deep", key]
    assert cited_in(said) == {"He et al., 2016", words}, said
    assert said_and_cited({})[1] == ["hpc-seresnet", "he2016deep"] and cited_in(said_and_cited({})[0]) == {"He et al., 2016"}


def test_everything_at_once_in_arms_that_share_nothing_is_named_and_cited() -> None:
    keys = [keys for _, keys in USES.values()]
    for place, used in enumerate(keys):  # so that nothing that a sentence begins with is shared, either
        own = {"model.blocks": [1, place + 1], "optim.lr": 0.1 + place, "train.epochs": 40 + place, "optim.warmup_epochs": place}
        keys[place] = {**own, **used}
    said, cited = said_and_cited(*keys)
    assert set(cited) == {"hpc-seresnet", "he2016deep", *USES}
    assert cited_in(said) == {"He et al., 2016", *(words for words, _ in USES.values())}, said


def test_an_arm_with_augmix_is_said_to_be_one_of_some() -> None:
    said, _ = said_and_cited({"augment.autoaugment": "cifar10"}, {"augment.augmix_severity": 3}, {"augment.augmix_severity": 5})
    assert (
        "Training images were augmented by random crops after a zero padding of 4 pixels, random horizontal flips, in some configurations"
        " AutoAugment's CIFAR-10 policy (Cubuk et al., 2019) and in some configurations AugMix of severity 3 or 5 (Hendrycks et al., 2020)."
    ) in said


def test_a_warm_up_as_long_as_the_run_still_names_the_schedule_that_is_cited() -> None:
    said, cited = said_and_cited({"optim.schedule": "cosine", "optim.warmup_epochs": 900})
    assert "which it would have reached after 900 epochs. Its schedule would have been a cosine (Loshchilov & Hutter, 2017)." in said
    assert "loshchilov2017sgdr" in cited


@pytest.mark.parametrize(
    ("where", "words"),
    [("every", " in every block"), ([1, 2], " in stages 1 and 2"), ([3], " in stage 3")],
)
def test_the_place_of_attention_is_told(where: str | Sequence[int], words: str) -> None:
    said, _ = said_and_cited({"model.attention": "se", "model.attention_at": where})
    assert f"with squeeze-and-excitation (Hu et al., 2018), reduction 16{words}." in said


def test_networks_and_losses_of_somebody_else_stand_beside_ours() -> None:
    said, _ = said_and_cited({"model.attention": "eca"}, {"model.target": "own_nets:Mixer"})
    assert "Some networks are own_nets:Mixer, the others residual (He et al., 2016), with stages of 4, 4 and 3 basic blocks" in said
    assert "with efficient channel attention (Wang et al., 2020) in every block." in said
    mine = {"model.target": "own_nets:Mixer", "train.loss_target": "own_losses:focal"}
    assert methods_recipe.networks([mine]) == "The network is own_nets:Mixer."
    assert methods_recipe.loss([mine, {}]) == "own_losses:focal and cross-entropy"


def test_entries_have_what_finds_a_work_and_no_pages() -> None:
    for work in bibliography.WORKS[1:]:
        fields = dict(work.fields)
        assert set(fields) in ({"author", "title", "booktitle", "year"}, {"author", "title", "eprint", "archivePrefix", "year"}), work.key
        name, year = fields["author"].partition(",")[0].lower(), fields["year"]
        assert work.key.startswith(f"{name}{year}") and all(fields.values())


def test_runs_that_are_no_longer_asked_for_are_in_no_paragraph() -> None:
    asked, former = gathered({"optim.lr": 0.1}, {"optim.lr": 0.7}).rows
    of_both = Gathered(arms=("arm0",), rows=(asked, replace(former, arms=())), skipped=())
    assert "0.7" not in methods.paragraph(compare(of_both))
    of_none = Gathered(arms=("arm0",), rows=(replace(former, arms=()),), skipped=())
    assert methods.paragraph(compare(of_none)).startswith("No run has finished yet")
