"""Reading a run's YAML: what is accepted, where values come from, and every message of a faulty file, compared whole."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from seresnet.config import RunConfig, iter_keys, to_dict
from seresnet.config_file import config_from_dict, explain, read_run_config
from seresnet.errors import ConfigError

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("config_*.yaml"))
KEY = "0123456789abcdef" * 2 + "01234567"

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def _write(text: str) -> Path:
        Path("run.yaml").write_text(text)
        return Path("run.yaml")

    return _write


def test_golden_cases_are_all_there() -> None:
    assert len(CASES) >= 20, CASES


@pytest.mark.parametrize("case", CASES)
def test_message_of_a_faulty_file_is_the_golden_one(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(GOLDEN / f"{case}.yaml", tmp_path / "run.yaml")
    monkeypatch.chdir(tmp_path)
    first = Path("run.yaml").read_text().partition("\n")[0]
    overrides = first.removeprefix("# overrides: ").split() if first.startswith("# overrides: ") else []
    with pytest.raises(ConfigError) as caught:
        read_run_config(Path("run.yaml"), overrides)
    assert f"{caught.value}\n" == (GOLDEN / f"{case}.txt").read_text()


def test_nested_and_dotted_keys_mean_the_same(write: Write) -> None:
    nested = read_run_config(write("optim: {lr: 0.05}\nmodel:\n  blocks: [1, 2]\n")).config
    dotted = read_run_config(write("optim.lr: 0.05\nmodel.blocks:\n- 1\n- 2\n")).config
    assert nested == dotted
    assert (nested.optim.lr, nested.model.blocks) == (0.05, (1, 2))


def test_empty_file_and_empty_section_are_the_defaults(write: Write) -> None:
    assert read_run_config(write("")).config == RunConfig()
    assert read_run_config(write("# only this\naugment:\n")).config == RunConfig()


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("1E-4", 1e-4), ("5.0e-4", 5e-4), (".5", 0.5), ("1.", 1.0), ("+2", 2.0)])
def test_numbers_that_yaml_1_1_misreads_are_floats(write: Write, text: str, value: float) -> None:
    assert read_run_config(write(f"optim.lr: {text}")).config.optim.lr == value


def test_whole_number_is_a_float_where_a_float_is_wanted(write: Write) -> None:
    lr = read_run_config(write("optim.lr: 1")).config.optim.lr
    assert (lr, type(lr)) == (1.0, float)


def test_minus_zero_is_zero(write: Write) -> None:
    assert str(read_run_config(write("optim.weight_decay: -0.0")).config.optim.weight_decay) == "0.0"


def test_off_and_none_are_text_without_quotes(write: Write) -> None:
    config = read_run_config(write("train.amp: off\naugment.autoaugment: none\ndata.path: no\n")).config
    assert (config.train.amp, config.augment.autoaugment, config.data.path) == ("off", "none", "no")


@pytest.mark.parametrize("text", ["2024-01-01", "1:30", "0o17", "017", "0x1F", "1_000", "yes", "=", "1e", "NULL_AND_VOID"])
def test_what_resembles_another_type_stays_text(write: Write, text: str) -> None:
    assert read_run_config(write(f"data.path: {text}")).config.data.path == text


def test_byte_order_mark_is_skipped(write: Write) -> None:
    assert read_run_config(write("\ufeffoptim.lr: 0.5")).config.optim.lr == 0.5


def test_file_that_is_not_utf8_is_refused_with_its_line(write: Write) -> None:
    path = write("")
    path.write_bytes(b"optim.lr: 0.1\ndata.path: M\xfcnchen\n")
    with pytest.raises(ConfigError, match=r"^run.yaml:2: byte 0xfc is not UTF-8 text. Save the file as UTF-8.$"):
        read_run_config(path)


def test_control_character_is_refused_with_its_line(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"^run.yaml:2: this is not YAML: character 0x0000 is not allowed"):
        read_run_config(write("optim.lr: 0.1\ndata.path: \0\n"))


def test_missing_file_names_the_nearest_one(write: Write) -> None:
    write("")
    with pytest.raises(ConfigError, match=r"^rum.yaml: cannot be read: No such file or directory. Did you mean run.yaml\?$"):
        read_run_config(Path("rum.yaml"))


@pytest.mark.parametrize("text", ["&a [*a]", "[" * 1500, "{" * 1500, "9" * 310, "9" * 400, "9" * 5000, "-" + "9" * 500 + ".5"])
def test_hostile_values_are_refused_in_one_line(write: Write, text: str) -> None:
    with pytest.raises(ConfigError, match=r"^run.yaml:1: [^\n]{1,400}$"):
        read_run_config(write(f"optim.lr: {text}"))


def test_python_tags_are_not_executed(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"run.yaml:1: data.path: a YAML tag"):
        read_run_config(write("data.path: !!python/object/apply:os.mkdir [made]"))
    assert not Path("made").exists()


@pytest.mark.parametrize(
    "text",
    [
        f"data.path: {KEY}",
        f"data.path: x={KEY}",
        f"{KEY}: 1",
        f"data.path: '\"{KEY}\"'",
        f"{{data.path: [{KEY}]}}",
        "data.path: wandb_v1_AbCdEfGhIjKlMnOpQrSt",
    ],
)
def test_secret_is_refused_and_not_shown(write: Write, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_run_config(write(text))
    assert KEY not in str(caught.value) and "wandb_v1_" not in str(caught.value), caught.value


def test_secret_in_a_comment_is_refused_and_a_commit_is_not(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"^run.yaml:2: the comment holds what looks like a W&B key"):
        read_run_config(write(f"optim.lr: 0.1\n# WANDB_API_KEY={KEY}\n"))
    assert read_run_config(write(f"optim.lr: 0.2  # as in commit {KEY}")).config.optim.lr == 0.2


def test_digest_within_a_path_is_no_secret(write: Write) -> None:
    for path in (f"/cache/{KEY}/cifar.tar", f"cache-{KEY}.tar", f"x{KEY}"):
        assert read_run_config(write(f"data.path: {path}")).config.data.path == path


def test_override_wins_and_is_checked_with_the_file(write: Write) -> None:
    loaded = read_run_config(write("train: {global_batch_size: 100}"), ["train.micro_batch_size=50", "train.ranks=2"])
    assert loaded.config.train.ranks == 2
    with pytest.raises(ConfigError, match=r"^override 'train.ranks=2': train.ranks: 2 cannot share train.global_batch_size 100"):
        read_run_config(Path("run.yaml"), ["train.ranks=2"])


@pytest.mark.parametrize(("text", "value"), [("null", None), ("", None), ("/a b/c", "/a b/c"), ("a=b", "a=b"), ("'5'", "5")])
def test_value_of_an_override_is_yaml(write: Write, text: str, value: str | None) -> None:
    assert read_run_config(write("data.path: x"), [f"data.path={text}"]).config.data.path == value


def test_origins_name_line_override_or_default(write: Write) -> None:
    origins = read_run_config(write("optim:\n  lr: 0.1\nmodel.blocks:\n- 1\n"), ["train.seed=3"]).origins
    assert origins["optim.lr"] == "run.yaml:2"
    assert origins["model.blocks"] == "run.yaml:3"
    assert origins["train.seed"] == "override 'train.seed=3'"
    assert origins["train.epochs"] == "default"
    assert len(origins) == len(list(iter_keys(RunConfig())))


def test_explain_tells_value_origin_class_and_meaning(write: Write) -> None:
    loaded = read_run_config(write("optim.lr: 0.1"), ["optim.lr=5e-2"])
    assert explain(loaded, "optim.lr") == (
        "optim.lr = 0.05\n"
        "  from     override 'optim.lr=5e-2'\n"
        "  class    identity: what is computed; part of the run's id\n"
        "  default  0.1\n"
        "  meaning  learning rate after warm-up"
    )


def test_explain_of_an_unknown_key_names_the_nearest(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"optim.lrr: there is no such key. Did you mean optim.lr\?"):
        explain(read_run_config(write("")), "optim.lrr")


def test_dict_of_a_config_reads_back_as_the_same_config() -> None:
    config = RunConfig()
    config = replace(config, model=replace(config.model, attention_at=(1, 3)), train=replace(config.train, amp="off"))
    assert config_from_dict(to_dict(config), "run.yaml: config") == config


def test_dict_is_read_as_strictly_as_a_file() -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_dict({"optim": {"lr": float("nan"), "lrr": 1}, "train": {"seed": True}}, "a/run.yaml")
    assert str(caught.value).splitlines() == [
        "a/run.yaml: optim.lr: nan is not a finite number. Use a number that is above 0.",
        "a/run.yaml: optim.lrr: 1 is given to an unknown key. Did you mean optim.lr?",
        "a/run.yaml: train.seed: true is a boolean, a whole number is wanted. Write a whole number.",
    ]
