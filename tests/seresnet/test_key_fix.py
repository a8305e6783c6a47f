"""What is advised for a key that does not exist: the section that was meant with the same name, before anything else."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from seresnet.config_file import key_fix, key_specs, read_run_config
from seresnet.errors import ConfigError

TYPED_AND_MEANT = {
    "optm.lr": "optim.lr",
    "trian.epochs": "train.epochs",
    "modle.target": "model.target",
    "modle.args.depth": "model.args.depth",
    "augmnet.flip": "augment.flip",
    "modle": "model",
    "augmnet": "augment",
    "trian": "train",
    # Section and name mistyped; the name right, in a section that has none such; the name nearly right.
    "mdl.wdth": "model.width",
    "optim.epochs": "train.epochs",
    "optm.warmup": "optim.warmup_epochs",
    "model.attention.kind": "model.attention",
    # One word: a name, or a section.
    "epochs": "train.epochs",
    "widht": "model.width",
    "atention": "model.attention",
    # Of a sweep.
    "sit.walltime_min": "site.walltime_min, a key of sweeps",
    "pck.mode": "pack.mode, a key of sweeps",
    "sedes": "seeds, a key of sweeps",
}


def slips(word: str) -> Iterator[str]:
    """The word without one of its letters, or with two neighbours exchanged."""
    for place in range(len(word)):
        yield word[:place] + word[place + 1 :]
    for place in range(len(word) - 1):
        yield word[:place] + word[place + 1] + word[place] + word[place + 2 :]


@pytest.mark.parametrize(("typed", "meant"), TYPED_AND_MEANT.items())
def test_the_key_that_was_meant_is_named(typed: str, meant: str) -> None:
    assert key_fix(typed) == f"Did you mean {meant}?"


def test_any_slip_in_any_section_names_the_same_key_of_the_right_section() -> None:
    wrong = []
    for key in key_specs():
        section, _, name = key.partition(".")
        typed = {f"{slip}.{name}" for slip in slips(section) if slip != section}
        wrong += [(one, found) for one in sorted(typed) if (found := key_fix(one)) != f"Did you mean {key}?"]
    assert not wrong


def test_what_is_near_nothing_lists_what_there_is() -> None:
    assert key_fix("xyzzy.q") == key_fix("xyzzy") == "Sections: model, data, augment, optim, train, program."
    assert key_fix("augment.xyzzy").startswith("Keys of augment: crop_padding, flip, ")


def test_keys_of_sweeps_in_a_run_say_where_they_belong(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("site.walltime_min: 3\ngrid: {optim.lr: [1]}\n")
    with pytest.raises(ConfigError) as caught:
        read_run_config(tmp_path / "run.yaml")
    first, second = str(caught.value).splitlines()
    assert first.endswith("It is a key of sweeps, not of runs. Write it at the top of a sweep's file.")
    assert second.endswith("Launch a sweep's file with --sweep.")
