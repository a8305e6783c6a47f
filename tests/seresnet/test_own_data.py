"""Data sets of somebody else's: what they may give, what is refused, how their file is known, and that equal code gives equal bytes."""

import importlib
import random
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from seresnet import own_code, own_data, train, train_arguments
from seresnet.array_file import load_arrays
from seresnet.config import DataConfig, RunConfig
from seresnet.config_file import read_run_config
from seresnet.errors import ConfigError, DataError
from seresnet.prepare import find_prepared, find_with_digest, prepare

#: What is given is drawn from every global generator; 6 and 4 images of two classes.
MODULE = """
import random, time, types
import numpy as np, torch
CALLS = []
def images(count, channels=(3,)):
    return np.random.randint(0, 256, (count, 8, 9, *channels), dtype=np.uint8)
def build(train=6, test=4, path=None):
    CALLS.append(path)
    time.sleep(0.05)
    drawn = images(train)
    drawn[0, 0, 0] = [random.randrange(256), int(torch.randint(256, ())), 7]
    labels = {"train_labels": np.arange(train) % 2, "test_labels": np.arange(test) % 2}
    return {"train_images": drawn, "test_images": images(test), "classes": ["cat", "dog"], "title": "pets", **labels}
def changed():
    parts = build()
    train, test = parts["train_images"], parts["test_images"]
    # here
    return parts
"""

Write = Callable[[str], DataConfig]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """write(text): the module own_made under a code_root, new each time, and a config whose data set it builds."""
    root = tmp_path / "mine"
    root.mkdir()
    monkeypatch.setenv(own_code.VARIABLE, str(root))
    monkeypatch.syspath_prepend(root)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def text_of_module(text: str) -> DataConfig:
        (root / "own_made.py").write_text(text)
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, "own_made", raising=False)
        return DataConfig(target="own_made:build")

    return text_of_module


def give(write: Write, statement: str) -> DataConfig:
    return replace(write(MODULE.replace("# here", statement)), target="own_made:changed")


def disturb() -> None:
    for draw in (random.random, np.random.rand, lambda: torch.rand(())):
        draw()


# What it gives


def test_arrays_are_what_the_callable_gave_under_its_title_and_classes(write: Write, tmp_path: Path) -> None:
    config = replace(write(MODULE), args=(("train", 10),))
    found = load_arrays(prepare(config, tmp_path))
    assert (found.title, found.classes, found.train_images.shape) == ("pets", ("cat", "dog"), (10, 8, 9, 3))
    assert found.train_labels.tolist() == [0, 1] * 5 and found.train_images[0, 0, 0, 2] == 7
    assert found.mean.tolist() == pytest.approx((found.train_images.reshape(-1, 3) / 255).mean(0).tolist())


@pytest.mark.parametrize(
    "statement",
    [
        "parts = types.SimpleNamespace(**parts)",
        "np.savez('{folder}/parts.npz', **parts); parts = np.load('{folder}/parts.npz')",
        "parts = {name: part.tolist() if name.endswith('labels') else part for name, part in parts.items()}",
        "parts = {name: torch.from_numpy(part) if name in own else part for own in [list(parts)[:2]] for name, part in parts.items()}",
    ],
)
def test_a_mapping_an_object_lists_and_tensors_are_one_data_set(write: Write, tmp_path: Path, statement: str) -> None:
    found = load_arrays(prepare(give(write, statement.format(folder=tmp_path) if "npz" in statement else statement), tmp_path))
    assert found.digest == load_arrays(prepare(write(MODULE), tmp_path)).digest and found.title == "pets"


@pytest.mark.parametrize("channels", ["()", "(1,)"])
def test_grey_images_become_three_equal_channels(write: Write, tmp_path: Path, channels: str) -> None:
    grey = f"parts['train_images'] = np.arange(432, dtype=np.uint8).reshape(6, 8, 9, *{channels})"
    grey = f"{grey}; parts['test_images'] = images(4, {channels})"
    found = load_arrays(prepare(give(write, grey), tmp_path)).train_images
    expected = np.arange(432).astype(np.uint8).reshape(6, 8, 9)
    assert all(np.array_equal(found[..., channel], expected) for channel in range(3))


def test_without_names_classes_are_numbers_and_the_title_is_the_target(write: Write, tmp_path: Path) -> None:
    found = load_arrays(prepare(give(write, "del parts['classes'], parts['title']"), tmp_path))
    assert (found.classes, found.title) == (("0", "1"), "own_made:changed")


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("parts = (train, test)", "gives a tuple of 2 without train_images, train_labels, test_images, test_labels. A mapping, or"),
        ("parts = {'train_images': train}", "gives a mapping of train_images without train_labels, test_images, test_labels. A"),
        ("parts['test_label'] = 3", "gives a part 'test_label', which nobody reads. Did you mean test_labels?"),
        ("parts['train_images'] = train / 255", "float64 (6, 8, 9, 3). uint8 (N, H, W, 3) is wanted, values 0..255, or (N, H, W) for grey"),
        ("parts['train_images'] = train / 255", "write (255 * train_images).round().astype('uint8')"),
        ("parts['test_images'] = test.astype(int)", "gives test_images as int64 (4, 8, 9, 3)"),
        ("parts['train_images'] = train > 9", "Write 255 * train_images.astype('uint8')"),
        ("parts['train_images'] = train.transpose(0, 3, 1, 2)", "Write train_images.transpose(0, 2, 3, 1)"),
        ("parts['train_images'] = np.concatenate([train, train[..., :1]], 3)", "Drop the transparency: train_images[..., :3]"),
        ("parts['train_images'] = train[0, 0]", "uint8 (9, 3). uint8 (N, H, W, 3) is wanted"),
        ("parts['test_images'] = test[:0]", "of shape (0, 8, 9, 3), which is no image at all"),
        (
            "parts['test_images'] = test[:, 1:]",
            "train_images of 8 x 9 and test_images of 7 x 9 pixels (height x width). Give both one size",
        ),
        ("parts['train_labels'] = [0, 1]", "gives 2 train_labels for 6 images"),
        ("parts['train_labels'] = np.eye(2)[[0, 1] * 3]", "Write train_labels.argmax(1) if they are one-hot"),
        ("parts['train_labels'] = parts['train_labels'][:, None]", "Write train_labels.ravel()"),
        ("parts['train_labels'] = parts['train_labels'] / 1", "Write train_labels.astype('int64')"),
        ("parts['train_labels'] = ['cat', 'dog'] * 3", "Give numbers, and the names as classes"),
        ("parts['test_labels'] = parts['test_labels'] - 1", "gives test_labels of -1..0. Labels count from 0"),
        ("parts['test_labels'] = parts['test_labels'] + 1", "gives test_labels up to 2 for 2 classes"),
        ("parts['train_labels'] = parts['train_labels'] * 0", "no training image of class 1 (dog). Labels count from 0"),
        ("del parts['classes']; parts['train_labels'] = parts['train_labels'] + 1", "no training image of class 0 (0)"),
        ("del parts['classes']; parts['train_labels'] = [0, 1, 0, 1, 0, 10**15]", "train_labels up to 1000000000000000 for 6 images"),
        ("parts['classes'] = 'catdog'", "classes as an object of type str. A list of names, in the order of the labels, is wanted"),
        ("parts['classes'] = ['cat', 'cat']", "Two different names at least, none empty, are wanted"),
        ("parts['classes'] = ['cat', 'd\\nog']", "gives a class the name 'd\\nog'. Give it one printable line"),
        ("parts['classes'] = [b'cat', b'dog']", "gives a class the name b'cat'. Give it one printable line of text"),
        (
            "parts['train_images'] = [train[0], train[1][:5]]",
            "gives train_images as a list of 2 that is no array: setting an array element",
        ),
        ("parts['title'] = 'a\\x1b[2J'", "gives the title 'a\\x1b[2J'. One printable line"),
        ("parts['title'] = 3", "gives the title '3'. One printable line of up to 80 characters"),
        ("open('/no/such/file')", "raised FileNotFoundError: [Errno 2] No such file or directory: '/no/such/file'"),
        ("1 / 0", "raised ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_no_data_set_is_refused_with_what_was_given_and_the_fix(write: Write, tmp_path: Path, statement: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare(give(write, statement), tmp_path / "data")
    assert str(caught.value).startswith("data.target: own_made:changed ") and said in str(caught.value)
    assert not list((tmp_path / "data").glob("*.arrays"))


def test_arguments_that_it_does_not_take_are_refused_with_those_that_it_does(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.args: own_made:build takes \(train=6, test=4, path=None\): got an unexpected.*'size'"):
        prepare(replace(write(MODULE), args=(("size", 3),)), tmp_path)


def test_an_error_of_the_disk_is_not_the_users_and_is_tried_again(write: Write, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="raised OSError"):
        prepare(give(write, "import errno; raise OSError(errno.EIO, 'I/O')"), tmp_path)


# The same bytes


def test_two_builds_have_the_same_bytes_and_leave_the_generators_alone(write: Write, tmp_path: Path) -> None:
    before = (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())
    first = prepare(write("import numpy; numpy.random.rand()\n" + MODULE), tmp_path / "1")
    assert (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()) == before
    disturb()
    second = prepare(DataConfig(target="own_made:build"), tmp_path / "2")  # its module is imported already
    assert first.read_bytes() == second.read_bytes() and first.name == second.name
    assert len(np.unique(load_arrays(first).train_images)) > 200, "nothing was drawn"


def test_a_purged_file_is_built_again_with_its_bytes_and_name(write: Write, tmp_path: Path) -> None:
    made = prepare(config := write(MODULE), tmp_path)
    content = made.read_bytes()
    made.unlink()
    disturb()
    assert prepare(config, tmp_path) == made and made.read_bytes() == content


def test_of_many_at_once_one_calls_it_and_the_others_wait(write: Write, tmp_path: Path) -> None:
    config, found = write(MODULE), []
    threads = [threading.Thread(target=lambda: found.append(prepare(config, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1 and sys.modules["own_made"].CALLS == [None]


# By what the file is known


def test_an_edit_of_any_module_and_other_arguments_build_anew(write: Write, tmp_path: Path) -> None:
    first, data = prepare(write(MODULE), tmp_path / "d"), tmp_path / "d"
    assert prepare(replace(write(MODULE), args=(("test", 5),)), data) != first
    (tmp_path / "mine" / "helper.py").write_text("SIZE = 1\n")
    second = prepare(write(MODULE), data)
    assert second != first and load_arrays(second).digest == load_arrays(first).digest
    third = prepare(write(MODULE.replace("= 7", "= 8").replace("), 7]", "), 8]")), data)
    assert len({first, second, third}) == 3 and load_arrays(third).train_images[0, 0, 0, 2] == 8
    assert find_prepared(DataConfig(target="own_made:build"), data) == third
    assert prepare(replace(write(MODULE), target="own_made.build"), data) == second, "another spelling is another file"


def test_what_was_made_before_an_edit_is_found_by_its_digest(write: Write, tmp_path: Path) -> None:
    first = prepare(write(MODULE), tmp_path)
    prepare(config := write(MODULE.replace("), 7]", "), 8]")), tmp_path)
    assert find_with_digest(config, tmp_path, load_arrays(first).digest) == first
    assert find_with_digest(config, tmp_path, "0" * 64) is None
    assert find_with_digest(DataConfig(name="digits"), tmp_path, load_arrays(first).digest) is None


def test_code_under_code_root_counts_whole_and_an_installed_module_by_its_own_file(write: Write, tmp_path: Path) -> None:
    write(MODULE)
    assert own_code.digest_of_module("own_made") == own_code.digest()
    import hashlib
    import json.decoder

    installed = hashlib.sha256(Path(json.decoder.__file__).read_bytes()).hexdigest()[:16]
    assert own_code.digest_of_module("json.decoder") == installed
    assert own_code.digest_of_module("sys") is own_code.digest_of_module("nobody_has.this") is None


def test_place_comes_as_path_and_what_lies_there_tells_the_files_apart(write: Write, tmp_path: Path) -> None:
    place, data = tmp_path / "raw", tmp_path / "d"
    place.write_bytes(b"one")
    config = replace(write(MODULE), path=str(place))
    first = prepare(config, data)
    calls = sys.modules["own_made"].CALLS
    assert calls == [str(place)]
    place.write_bytes(b"another")
    assert prepare(config, data) != first
    place.unlink()
    assert prepare(config, data).stat().st_mtime >= first.stat().st_mtime, "the source is gone, what was made of it is not"
    with pytest.raises(DataError, match="does not exist, and no array file was made from it"):
        prepare(replace(config, path=str(tmp_path / "never")), data)


def test_a_place_that_nobody_asked_for_is_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.path: .* is set, and own_made:changed takes no argument path. Unset data.path"):
        prepare(replace(give(write, "pass"), path=str(tmp_path)), tmp_path)


# In the config


def config_of(tmp_path: Path, text: str) -> RunConfig:
    (tmp_path / "run.yaml").write_text(text)
    return read_run_config(tmp_path / "run.yaml", ()).config


def test_target_and_arguments_are_the_runs_identity_and_a_place_is_not(tmp_path: Path) -> None:
    from seresnet.config import run_id

    texts = ("", ", args: {n: 1}", ", args: {n: 2}", ", args: {n: 2}, path: /x")
    ids = [run_id(config_of(tmp_path, f"data: {{target: a.b{text}}}")) for text in texts]
    assert len(set(ids[:3])) == 3 and ids[2] == ids[3]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: {target: a.b, name: digits}", "run.yaml:1: data.name: digits is one of the built-in data sets, and data.target is a.b"),
        ("data: {args: {n: 1}}", "data.args has arguments, and data.target is not set"),
        ("data: {target: shapes}", "'shapes' does not say where a callable is"),
        ("data: {target: a.b, args: {path: x}, path: /y}", "data.args.path is given, and data.path comes as path, too"),
    ],
)
def test_keys_that_contradict_the_target_are_refused_with_their_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(tmp_path, text)
    assert said in str(caught.value)


def test_the_default_name_beside_a_target_is_no_contradiction(tmp_path: Path) -> None:
    assert config_of(tmp_path, "data: {target: a.b, name: cifar10}").data.target == "a.b"


def test_own_data_names_every_part_that_it_reads() -> None:
    from dataclasses import fields

    from seresnet.array_file import LabelledImages

    assert {field.name for field in fields(LabelledImages)} == set(own_data.PARTS)


def test_folder_of_a_config_that_names_a_data_set_alone_is_the_code_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(own_code.VARIABLE, "")
    (tmp_path / "own_made.py").write_text("")
    config = config_of(tmp_path, "data: {target: own_made.build}")
    train._name_code_root(train_arguments.parser().parse_args(["--config", str(tmp_path / "run.yaml")]), config)
    assert own_code.code_root() == tmp_path.resolve()
