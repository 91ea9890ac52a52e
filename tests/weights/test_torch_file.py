"""torch's files without torch: what is read, what is written, and the pickles that are refused and run nothing."""

import collections
import os
import pathlib
import pickle
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from input_pipeline.errors import UserError
from pin_jax.weights import torch_file
from tests.fixtures import torch_files
from tests.fixtures.torch_files import Storage, View, tensor

RNG = np.random.default_rng(0)
ARRAYS = {
    "half": RNG.normal(size=(2, 3)).astype(np.float16),
    "brain": RNG.normal(size=(2, 3)).astype(ml_dtypes.bfloat16),
    "single": RNG.normal(size=(3, 1, 2)).astype(np.float32),
    "long": np.array([-1, 2**40]),
    "scalar": np.float32(3.5).reshape(()),
    "empty": np.zeros((0, 4), np.float32),
}


def check(held):
    for key, array in ARRAYS.items():
        value = np.asarray(held[key])
        assert value.dtype == array.dtype and value.shape == array.shape
        np.testing.assert_array_equal(value, array)


def test_tensors_of_every_kind(tmp_path, monkeypatch):
    shared = Storage(np.arange(12, dtype=np.float32))
    held = torch_files.state_dict(ARRAYS)
    held["whole"], held["turned"] = View(shared, 0, (3, 4), (4, 1)), View(shared, 0, (4, 3), (1, 4))
    held["part"] = View(shared, 5, (2, 2), (4, 1))
    held["parameter"] = tensor(ARRAYS["single"], parameter=True)
    torch_files.write(
        tmp_path / "x.pt", {"model_state_dict": held, "epoch": 3, "note": [None, (1.5, "a")]}, monkeypatch
    )
    found = torch_file.load(tmp_path / "x.pt")
    assert found["epoch"] == 3 and found["note"] == [None, (1.5, "a")]
    check(found["model_state_dict"])
    grid = np.arange(12).reshape(3, 4)
    for key, expected in (("whole", grid), ("turned", grid.T), ("part", grid[1:, 1:3])):
        np.testing.assert_array_equal(np.asarray(found["model_state_dict"][key]), expected)
    np.testing.assert_array_equal(np.asarray(found["model_state_dict"]["parameter"]), ARRAYS["single"])
    tensors = torch_file.TorchTensors(tmp_path / "x.pt", inside="model_state_dict")
    assert set(tensors) == set(held) and tensors.shape("turned") == (4, 3)
    flat = tmp_path / "flat.pt"
    torch_files.write(flat, torch_files.state_dict(ARRAYS), monkeypatch, root="another name")
    check(torch_file.TorchTensors(flat, inside="model_state_dict"))


def test_nothing_but_what_is_asked_for_is_read(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    torch_files.write(path, {"a": tensor(np.zeros(1000, np.float32)), "b": tensor(np.ones(3, np.float32))}, monkeypatch)
    tensors = torch_file.TorchTensors(path)
    with open(path, "r+b") as file:  # what is read comes from the file at the time of asking
        start = path.read_bytes().index(np.ones(3, np.float32).tobytes())
        file.seek(start)
        file.write(np.full(3, 7, np.float32).tobytes())
    np.testing.assert_array_equal(tensors["b"], 7)
    assert not tensors["b"].flags.writeable  # a view into the file, not a copy


def test_our_files_are_read_back(tmp_path):
    torch_file.save(tmp_path / "x.pt", {"inner": ARRAYS, "epoch": -129, "big": 2**40, "flag": True, "t": (1, "a")})
    found = torch_file.load(tmp_path / "x.pt")
    assert (found["epoch"], found["big"], found["flag"], found["t"]) == (-129, 2**40, True, (1, "a"))
    check(found["inner"])
    with pytest.raises(ValueError, match="torch has no tensor of uint32"):
        torch_file.save(tmp_path / "y.pt", {"a": np.zeros(2, np.uint32)})


class Runs:
    """Would make a file when it is unpickled."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


HOSTILE = [
    (os.system, "system"),
    (pathlib.Path, "Path"),
    (exec, "exec"),
    (eval, "eval"),
    (getattr, "getattr"),
    (pickle.loads, "loads"),
]


@pytest.mark.parametrize(("function", "name"), HOSTILE)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"a": tensor(ARRAYS["single"]), "b": [x]}])
def test_a_hostile_pickle_runs_nothing(tmp_path, monkeypatch, function, name, wrap):
    marker = tmp_path / "ran"
    argument = f"touch {marker}" if function is os.system else f"open({str(marker)!r}, 'w')"
    torch_files.write(tmp_path / "evil.pt", wrap(Runs(function, argument)), monkeypatch)
    with pytest.raises(UserError, match=rf"its pickle wants [\w.]*{name}.*refused") as caught:
        torch_file.load(tmp_path / "evil.pt")
    assert "\n" not in str(caught.value) and not marker.exists()


def test_the_hostile_pickles_would_run_if_loaded_as_pickles(tmp_path):
    marker = tmp_path / "ran"
    pickle.loads(pickle.dumps(Runs(os.system, f"touch {marker}")))
    assert marker.exists()


@pytest.mark.parametrize(
    ("main", "said"),
    [
        (b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.", r"wants collections.OrderedDict.__init__"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n.", "holds a function"),  # a constructor, not what it makes
        (b"ccollections\nOrderedDict\n.", "holds a type"),
        (
            b"ccollections\nOrderedDict\n)R}(S'__class__'\nctorch\nFloatStorage\nub.",
            "no dict of tensors",
        ),  # its own attribute only
        (b"ctorch._utils\n_rebuild_tensor_v2\n(S'a'\nI0\n(tR.", "broken"),
        (b"cos\nsystem\n(S'true'\ntR.", r"wants os.system"),
        (b"(S'true'\nios\nsystem\n.", r"wants os.system"),
        (b"\x80\x02]q\x00h\x00a.", "no dict of tensors"),  # a list that holds itself
        (b"\x80\x02\x82\x01.", "broken"),  # an extension code
        (b"\x80\x02}", "broken"),  # no end
        (b"", "broken"),
    ],
)
def test_pickles_written_by_hand(tmp_path, main, said):
    torch_files.write_parts(tmp_path / "x.pt", main, [])
    with pytest.raises(UserError, match=said) as caught:
        torch_file.TorchTensors(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


def test_lists_within_lists_take_no_time(tmp_path):
    bomb = b"\x80\x02]q\x00" + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1])
                                        for i in range(60)) + b"."  # fmt: skip
    torch_files.write_parts(tmp_path / "x.pt", bomb, [])
    with pytest.raises(UserError, match="no dict of tensors"):
        torch_file.TorchTensors(tmp_path / "x.pt")


def test_another_class_is_named(tmp_path, monkeypatch):
    module = torch_files.named("torch.nn.modules.linear", "Linear")
    torch_files.write(tmp_path / "x.pt", {"a": module()}, monkeypatch, names=[module])
    with pytest.raises(
        UserError, match=r"wants (copyreg|copy_reg)\._reconstructor|wants torch.nn.modules.linear.Linear"
    ):
        torch_file.load(tmp_path / "x.pt")


def test_a_broken_file_is_one_line(tmp_path, monkeypatch):
    path, cut = tmp_path / "x.pt", tmp_path / "cut.pt"
    with pytest.raises(UserError, match="no such file"):
        torch_file.load(path)
    torch_files.write(path, {"a": tensor(np.arange(500.0, dtype=np.float32))}, monkeypatch)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 30):
        cut.write_bytes(whole[:size])
        with pytest.raises(UserError, match="cut short, or older than torch 1.6"):
            torch_file.load(cut)
    cut.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(1001))  # how files of before 1.6 begin
    with pytest.raises(UserError, match="older than torch 1.6"):
        torch_file.load(cut)
    main, _ = torch_files.pickled({"a": tensor(ARRAYS["single"])}, monkeypatch)
    for data in ([], [b"\0" * 8]):
        torch_files.write_parts(cut, main, data)
        with pytest.raises(UserError, match="broken .*storage '0' is (not in it|cut short)"):
            torch_file.load(cut)
    torch_files.write(cut, {"a": View(Storage(np.zeros(6, np.float32)), 3, (2, 2), (2, 1))}, monkeypatch)
    with pytest.raises(UserError, match="reaches beyond its storage"):
        torch_file.load(cut)
    torch_files.write(cut, {"a": View(Storage(np.zeros(6, np.float32)), 3, (2, 2), (-1, 1))}, monkeypatch)
    with pytest.raises(UserError, match="no valid shape"):
        torch_file.load(cut)
    torch_files.write(cut, {"a": tensor(ARRAYS["single"])}, monkeypatch, order="big")
    with pytest.raises(UserError, match="big-endian"):
        torch_file.load(cut)
    torch_files.write(cut, {"epoch": 3}, monkeypatch)
    with pytest.raises(UserError, match="no dict of tensors"):
        torch_file.TorchTensors(cut)


@pytest.mark.torch
def test_live_torch_both_ways(tmp_path):
    import torch

    layer = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
    held = collections.OrderedDict(layer.state_dict())
    held["turned"], held["brain"] = held["0.weight"].T, held["0.weight"].to(torch.bfloat16)
    held["half"], held["long"] = held["0.weight"].half(), torch.tensor([1, 2**40])
    held["parameter"] = torch.nn.Parameter(held["0.weight"] + 1)
    torch.save({"model_state_dict": held, "epoch": 3}, tmp_path / "x.pt")
    tensors = torch_file.TorchTensors(tmp_path / "x.pt", inside="model_state_dict")
    for key, value in held.items():
        assert str(value.dtype) == f"torch.{tensors[key].dtype}"
        np.testing.assert_array_equal(tensors[key].astype(np.float64), value.detach().double().numpy())
    torch.save(layer, tmp_path / "module.pt")
    with pytest.raises(UserError, match="wants torch.nn.modules.container.Sequential"):
        torch_file.load(tmp_path / "module.pt")
    torch.save(held, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="older than torch 1.6"):
        torch_file.load(tmp_path / "old.pt")
    torch_file.save(tmp_path / "ours.pt", {"inner": ARRAYS, "epoch": 3})
    for options in ({}, {"mmap": True}):
        found = torch.load(tmp_path / "ours.pt", weights_only=True, **options)
        assert found["epoch"] == 3
        for key, array in ARRAYS.items():
            assert str(found["inner"][key].dtype) == f"torch.{array.dtype}"
            np.testing.assert_array_equal(found["inner"][key].double().numpy(), array.astype(np.float64))


@pytest.mark.parametrize("member", ["byteorder", "data.pkl", "data/0", "anything"])
def test_what_unpacks_to_more_is_not_unpacked(tmp_path, member):
    """A zip bomb: little on disk, much in memory."""
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        if member != "data.pkl":
            archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr(f"archive/{member}", bytes(8 << 20), compress_type=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 16
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="is compressed .* nothing of it was unpacked"):
            torch_file.load(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_members_that_are_larger_than_weights_have_them(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/byteorder", b"little" * 1000)
    with pytest.raises(UserError, match="byteorder in it has 6000 bytes, over the 64"):
        torch_file.load(path)
    raw = path.read_bytes()
    sizes = struct.pack("<II", 6000, 6000)
    path.write_bytes(raw.replace(sizes, struct.pack("<II", 1 << 30, 1 << 30)))  # a size that is a lie
    with pytest.raises(UserError, match="its members are larger than the file"):
        torch_file.load(path)


def test_a_tensor_that_repeats_one_number_without_end(tmp_path, monkeypatch):
    one = Storage(np.ones(1, np.float32))
    path = tmp_path / "x.pt"
    torch_files.write(path, {"a": View(one, 0, (3, 4), (0, 0))}, monkeypatch)  # as torch saves an expanded tensor
    np.testing.assert_array_equal(np.asarray(torch_file.load(path)["a"]), np.ones((3, 4)))
    torch_files.write(path, {"a": View(one, 0, (1 << 30, 1 << 20), (0, 0))}, monkeypatch)
    with pytest.raises(UserError, match="repeats a storage of 4 bytes"):
        torch_file.load(path)
