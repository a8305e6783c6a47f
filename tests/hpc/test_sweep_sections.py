"""The sections of a sweep that say how its runs are run: packing and mail, from the file and from the command line; and size."""

import time
from pathlib import Path

import pytest
from sweep_text import expand_text, read_text

from hpc.sweep_spec import PackRequest
from seresnet.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "overrides", "request_"),
    [
        ("", (), PackRequest()),
        ("pack: auto", (), PackRequest(auto=True)),
        ("pack: {mode: concurrent}", (), PackRequest(mode="concurrent")),
        ("pack: {mode: sequential, runs_per_task: 3}", (), PackRequest(runs_per_task=3)),
        (
            "pack:\n  mode: concurrent\n  per_gpu: 4\n  gpus_per_task: 2\n  runs_per_task: 16",
            (),
            PackRequest(mode="concurrent", per_gpu=4, gpus_per_task=2, runs_per_task=16),
        ),
        ("pack.runs_per_task: 4", ("pack.mode=concurrent",), PackRequest(mode="concurrent", runs_per_task=4)),
        ("pack: {mode: concurrent, per_gpu: 4}", ("pack.mode=sequential",), PackRequest()),
        ("pack: {mode: concurrent, per_gpu: 4}", ("pack.per_gpu=3",), PackRequest(mode="concurrent", per_gpu=3)),
        ("pack: {mode: concurrent, per_gpu: 4}", ("pack=auto",), PackRequest(auto=True)),
        ("pack: auto", ("pack.runs_per_task=2",), PackRequest(runs_per_task=2)),
    ],
)
def test_pack_is_read_from_file_and_command_line(tmp_path: Path, text: str, overrides: tuple[str, ...], request_: PackRequest) -> None:
    assert read_text(tmp_path, f"base: {{}}\n{text}\n", *overrides).pack == request_


@pytest.mark.parametrize("overrides", [("pack.per_gpu=2",), ("pack.mode=sequential", "pack.per_gpu=2")])
def test_keys_of_concurrent_packing_without_it_are_refused_on_the_command_line(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"override 'pack.per_gpu=2': pack.per_gpu: 2 is given, and only mode: concurrent"):
        read_text(tmp_path, "base: {}", *overrides)


def test_concurrent_packing_needs_one_arm_of_one_rank(tmp_path: Path) -> None:
    two = "two: {train.ranks: 2, train.micro_batch_size: 512}"
    assert read_text(tmp_path, f"arms: {{one: {{}}, {two}}}\npack.mode: concurrent").pack.mode == "concurrent"
    with pytest.raises(ConfigError, match=r"sweep.yaml:2: pack.mode: concurrent is asked for, and every arm has train.ranks 2"):
        read_text(tmp_path, f"arms: {{{two}}}\npack.mode: concurrent")


def test_mail_is_an_address_or_nobody(tmp_path: Path) -> None:
    assert read_text(tmp_path, "base: {}").mail is None
    assert read_text(tmp_path, "base: {}\nmail: a.b+c@mail.example.org").mail == "a.b+c@mail.example.org"
    assert read_text(tmp_path, "base: {}\nmail: you@example.org", "mail=me@example.org").mail == "me@example.org"
    assert read_text(tmp_path, "base: {}\nmail: you@example.org", "mail=null").mail is None


@pytest.mark.parametrize(
    "address", ["'@example.org'", "a b@example.org", "'a@example.org\\n#SBATCH --wrap=x'", "-x@example.org", "a@-", "a@b@c", "3"]
)
def test_what_is_no_address_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match=r"sweep.yaml:2: mail: .* is not a mail address"):
        read_text(tmp_path, f"base: {{}}\nmail: {address}")


def test_a_run_yaml_takes_the_sections_of_sweeps_from_the_command_line(tmp_path: Path) -> None:
    spec = read_text(tmp_path, "optim.lr: 0.2", "pack=auto", "mail=me@example.org")
    assert (spec.pack.auto, spec.mail) == (True, "me@example.org")


def test_ten_thousand_runs_are_expanded_in_seconds(tmp_path: Path) -> None:
    tens = "[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]"
    text = f"base: {{}}\ngrid: {{optim.momentum: {tens}, optim.lr: {tens}, augment.mix_prob: {tens}}}\n"
    text += (
        "random: {count: 11, keys: {optim.weight_decay: {log_uniform: [1e-5, 1e-2]}}}\nexclude: [{optim.lr: 0.1, augment.mix_prob: 0.1}]"
    )
    start = time.process_time()
    runs = expand_text(tmp_path, text)
    seconds = time.process_time() - start
    assert len(runs) == 10890 and seconds < 10, f"{len(runs)} runs took {seconds:.1f} s of CPU time"


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("trian: {epochs: 3}", "Did you mean train? A sweep keeps keys of runs below base: or an arm."),
        ("optm.lr: 0.1", "Did you mean optim.lr? A sweep keeps keys of runs below base: or an arm."),
        ("epochs: 3", "Did you mean train.epochs? A sweep keeps keys of runs below base: or an arm."),
        ("gird: {optim.lr: [1]}", "Did you mean grid?"),
        ("optim.lr: 0.1", "A sweep keeps keys of runs below base: or an arm. Move optim.lr there."),
    ],
)
def test_a_key_of_runs_at_the_top_of_a_sweep_is_named_with_its_place(tmp_path: Path, key: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_text(tmp_path, f"base: {{}}\n{key}\n")
    assert str(caught.value).endswith(meant)
