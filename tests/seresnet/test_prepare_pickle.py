"""Official batches are read as Python reads them, and nothing in a hostile pickle runs."""

import pickle

import numpy as np
import pytest
from prepare_sources import python2_pickle, reference_load

from seresnet.errors import DataError
from seresnet.safe_pickle import load_plain


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert np.array_equal(found[key], value) and type(found[key]) is type(value), key


def test_pickle_of_python_2_is_read_as_python_reads_it():
    payload = python2_pickle({"data": np.arange(24, dtype=np.uint8).reshape(2, 12), "labels": [3, 1], "batch_label": "one"})
    assert_same(load_plain(payload, "batch"), reference_load(payload))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_pickle_of_python_3_is_read_as_python_reads_it(protocol):
    arrays = {"u1": np.arange(200, dtype=np.uint8).reshape(2, 100), "i8": np.array([[1, -2], [3, 4]]), "i4": np.arange(3, dtype=np.int32)}
    value = arrays | {
        "fortran": np.asfortranarray(arrays["u1"]),
        "labels": [1, 2],
        b"bytes": b"\x00\xff",
        "none": (None, 2.5, {"a": [True]}),
    }
    payload = pickle.dumps(value, protocol=protocol)
    assert_same(load_plain(payload, "batch"), reference_load(payload))


class Runs:
    """Unpickling this calls function(*arguments)."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def global_call(module, name, *arguments):
    """A pickle that calls module.name, found as Python 3 finds dotted names."""
    return b"\x80\x04" + pickle.dumps(module, 4)[2:-1] + pickle.dumps(name, 4)[2:-1] + b"\x93" + pickle.dumps(arguments, 4)[2:-1] + b"R."


@pytest.mark.parametrize("nested", [False, True])
def test_code_in_a_pickle_does_not_run(tmp_path, nested):
    mark = tmp_path / "ran"
    runs = Runs(exec, f"open({str(mark)!r}, 'w')")
    payload = pickle.dumps({"data": [runs]} if nested else runs)
    with pytest.raises(DataError, match=r"builtins\.exec.*Nothing in it was run"):
        load_plain(payload, "data_batch_1")
    assert not mark.exists()
    pickle.loads(payload)
    assert mark.exists(), "the test's pickle is not hostile"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("os", "system"),
        ("posix", "system"),
        ("subprocess", "Popen"),
        ("numpy", "load"),
        ("numpy", "ndarray.__class__"),
        ("numpy", "memmap"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy.testing._private.utils", "runstring"),
        ("_codecs", "decode"),
        ("copyreg", "_reconstructor"),
        ("collections", "OrderedDict"),
        ("seresnet.safe_pickle", "_ALLOWED"),
    ],
)
def test_no_other_name_is_reachable(module, name):
    with pytest.raises(DataError, match=rf"batch: .*it asks for {module}\.{name}"):
        load_plain(global_call(module, name, "1"), "batch")


def array_pickle(dtype_state, raw, code="u1"):
    """numpy's own pickle of an array, with a dtype state and content of the attacker's choice."""
    dtype = b"cnumpy\ndtype\n" + pickle.dumps((code, 0, 1), 2)[2:-1] + b"R" + pickle.dumps(dtype_state, 2)[2:-1] + b"b"
    head = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + pickle.dumps((0,), 2)[2:-1] + b"C\x01b\x87R"
    state = b"(K\x01(K\x01t" + dtype + b"\x89" + pickle.dumps(raw, 4)[2:-1] + b"tb"
    return b"\x80\x04}" + b"\x8c\x04data" + head + state + b"s."


def test_the_array_that_the_attacks_below_change_is_read():
    payload = array_pickle((3, "|", None, None, None, -1, -1, 0), b"\x07")
    assert load_plain(payload, "batch")["data"].tolist() == [7] == reference_load(payload)["data"].tolist()


@pytest.mark.parametrize(
    ("state", "raw", "code"),
    [
        ((3, "|", None, None, None, -1, -1, 0), b"\x41" * 8, "O8"),  # bytes as object pointers: a crash or worse in numpy
        ((3, "|", None, None, None, -1, -1, 63), ["text"], "O"),
        ((3, "|", None, ("f",), {"f": 1}, 8, 1, 63), b"\x00" * 8, "V8"),
        ((3, "|", None, None, None, -1, -1, 0), b"\x00" * 7, "u1"),  # wrong length
        ((3, ">", None, None, None, -1, -1, 0), b"\x00" * 8, "i8"),
        ((), b"\x00", "u1"),
        (7, b"\x00", "u1"),
    ],
)
def test_arrays_of_anything_but_integers_are_refused(state, raw, code):
    with pytest.raises(DataError, match="batch: not a pickle of plain containers"):
        load_plain(array_pickle(state, raw, code), "batch")


@pytest.mark.parametrize("name", [b"numpy\nndarray", b"numpy\ndtype", b"numpy.core.multiarray\n_reconstruct", b"_codecs\nencode"])
def test_attributes_of_the_allowed_names_cannot_be_set(name):
    set_attribute = b"\x80\x02c" + name + b"\nN}\x8c\x05shapeNs\x86b."
    with pytest.raises(DataError, match=r"batch: .*attribute 'shape'"):
        load_plain(set_attribute, "batch")


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_every_cut_and_random_damage_is_an_error_or_a_dict():
    payload = python2_pickle({"data": np.arange(9, dtype=np.uint8), "labels": [1, 2]})
    for length in range(len(payload)):
        with pytest.raises(DataError):
            load_plain(payload[:length], "batch")
    draw = np.random.default_rng(0)
    for _ in range(2000):
        damaged = bytearray(payload)
        damaged[draw.integers(len(payload))] = draw.integers(256)
        try:
            assert isinstance(load_plain(bytes(damaged), "batch"), dict)
        except DataError:
            continue


def test_memo_index_that_asks_for_all_memory_is_refused():
    with pytest.raises(DataError, match="a memo index of 4026531840"):
        load_plain(b"\x80\x02}r\x00\x00\x00\xf0.", "batch")


def test_something_other_than_a_dict_is_refused():
    with pytest.raises(DataError, match="holds a list, not a dict"):
        load_plain(pickle.dumps([1]), "batch")
