"""Slurm's reasons in plain words: the common ones say what to expect, none hides Slurm's own word, unknown ones stay as they are."""

import re

import pytest

from hpc.pending import REASONS, plain_reason


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("Priority", "waits its turn: jobs with higher priority come first (Priority)"),
        ("(Resources)", "is next: waits until enough GPUs or nodes are free (Resources)"),
        ("None", "Slurm has not looked at it yet"),
        ("QOSMaxGRESPerUser", "waits: you use as many GPUs as this QOS allows (QOSMaxGRESPerUser)"),
        ("AssocGrpGRES", "waits: the users of your account together use as many GPUs as they may (AssocGrpGRES)"),
        ("QOSMaxJobsPerUserLimit", "waits: you run as many jobs as this QOS allows (QOSMaxJobsPerUserLimit)"),
        ("AssocMaxJobsLimit", "waits: you run as many jobs as your account allows (AssocMaxJobsLimit)"),
        (
            "AssocGrpCPUMinutesLimit",
            "waits: the users of your account together use as much time on cores as they may (AssocGrpCPUMinutesLimit)",
        ),
        (
            "QOSMaxWallDurationPerJobLimit",
            "will not start as it is: it asks for more walltime than this QOS allows one job (QOSMaxWallDurationPerJobLimit)",
        ),
        (
            "ReqNodeNotAvail, UnavailableNodes:gpu[1-3]",
            "a node that it needs is down, reserved or in maintenance (ReqNodeNotAvail: UnavailableNodes:gpu[1-3])",
        ),
        ("SomethingOfALaterSlurm", "SomethingOfALaterSlurm"),
        ("", "Slurm gives no reason"),
    ],
)
def test_a_reason_in_plain_words(reason: str, text: str) -> None:
    assert plain_reason(reason) == text


def test_slurms_own_word_is_never_hidden() -> None:
    assert len(REASONS) >= 25
    hidden = [word for word in REASONS if word != "None" and f"({word})" not in plain_reason(word)]
    assert hidden == []


def test_every_limit_of_slurms_grammar_has_its_sentence() -> None:
    """The names of slurm.h: QOS and association limits, of groups, users and accounts, on what Slurm counts."""
    for whose in ("QOS", "Assoc"):
        for what in ("Cpu", "GRES", "Mem", "Node", "Billing", "License", "BB", "Energy"):
            for shape in ("Grp{}", "Grp{}Minutes", "Grp{}RunMinutes", "Max{}PerJob", "Max{}MinutesPerJob"):
                word = whose + shape.format(what)
                text = plain_reason(word)
                assert text != word and re.match(r"(waits|will not start)", text), text
