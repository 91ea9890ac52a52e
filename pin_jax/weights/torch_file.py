"""torch's `.pt` and `.bin` files without torch: a zip with a pickle, of which nothing but tensors is ever rebuilt.

Reading runs no code from the file: its pickle may name the handful of torch's constructors below and nothing else.
Tensors are memory-mapped out of the zip one by one. `save` writes dicts of arrays that `torch.load` reads with
`weights_only=True`.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

import ml_dtypes
import numpy as np

from input_pipeline.errors import UserError
from pin_jax.weights.files import short

_DTYPES = {
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "HalfStorage": np.dtype(np.float16),
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "ByteStorage": np.dtype(np.uint8),
    "CharStorage": np.dtype(np.int8),
    "ShortStorage": np.dtype(np.int16),
    "IntStorage": np.dtype(np.int32),
    "LongStorage": np.dtype(np.int64),
    "BoolStorage": np.dtype(np.bool_),
}

# bytes of the members that are read whole; OpenFlamingo-9B's pickle has a third of a megabyte
_MOST = {"data.pkl": 64 << 20, "byteorder": 64}
_MOST_REPEATED = 1 << 20


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a file, not yet read; numpy reads it (`np.asarray`), as a view into the file where it can.

    Attributes:
      data: where the bytes of its storage stand. dtype, shape: of the tensor. offset, strides: in elements.
    """

    data: tuple[pathlib.Path, int, int]
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        path, start, size = self.data
        if not math.prod(self.shape):
            return np.zeros(self.shape, dtype or self.dtype)
        storage = np.memmap(path, np.uint8, "r", start, (size,)).view(np.ndarray)
        storage = storage[: size // self.dtype.itemsize * self.dtype.itemsize]
        if storage.ctypes.data % self.dtype.alignment:  # a zip aligns nothing by itself; torch does
            storage = storage.copy()
        steps = [step * self.dtype.itemsize for step in self.strides]
        array = np.lib.stride_tricks.as_strided(
            storage.view(self.dtype)[self.offset :], self.shape, steps, writeable=False
        )
        return np.array(array, dtype) if copy else array.astype(dtype or self.dtype, copy=False)


class _Unpickler(pickle.Unpickler):
    """Knows torch's tensors and ordered dicts; every other name in the pickle is refused."""

    def __init__(self, file: Any, path: pathlib.Path, storages: Mapping[str, tuple[int, int]]):
        super().__init__(file, encoding="utf-8")
        self.path, self.storages = path, storages

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in _DTYPES:
            return (name,)  # stands for the class; only `persistent_load` looks at it
        # A new function each time: what a pickle does to it stays in that pickle.
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *args: self._tensor(*args)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, requires_grad=None, hooks=None: self._checked(data)
        raise UserError(
            f"{self.path}: its pickle wants {module}.{name}, which is not a tensor: refused, and nothing of it was run;"
            " give a file that holds weights only"
        )

    def persistent_load(self, pid: Any) -> tuple[np.dtype, str]:
        kind, (storage,), key, _, size = pid
        if kind != "storage" or key not in self.storages:
            raise pickle.UnpicklingError(f"storage {key!r} is not in it")
        dtype = _DTYPES[storage]
        if size * dtype.itemsize > self.storages[key][1]:
            raise pickle.UnpicklingError(f"storage {key!r} is cut short")
        return dtype, key

    def _tensor(self, storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None) -> Tensor:
        dtype, key = storage
        start, size = self.storages[key]
        numbers = (offset, *shape, *strides)
        if len(shape) != len(strides) or any(not isinstance(n, int) or n < 0 for n in numbers):
            raise pickle.UnpicklingError("a tensor has no valid shape")
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if math.prod(shape) and (last + 1) * dtype.itemsize > size:
            raise pickle.UnpicklingError("a tensor reaches beyond its storage")
        # Strides of 0 repeat a storage without end: terabytes out of one number, once someone copies it.
        if math.prod(shape) * dtype.itemsize > max(size, _MOST_REPEATED):
            raise pickle.UnpicklingError(f"a tensor of shape {tuple(shape)} repeats a storage of {size} bytes")
        return Tensor((self.path, start, size), dtype, tuple(shape), offset, tuple(strides))

    def _checked(self, data: Any) -> Tensor:
        if not isinstance(data, Tensor):
            raise pickle.UnpicklingError("a parameter is not a tensor")
        return data


def _only_data(value: Any, path: pathlib.Path, seen: set[int]) -> None:
    """Refuses what is neither a tensor nor a plain container or number; each container is looked at once."""
    if isinstance(value, Tensor | str | bytes | int | float | complex | None) or id(value) in seen:
        return
    seen.add(id(value))
    if not isinstance(value, dict | list | tuple | set | frozenset):
        raise UserError(f"{path}: holds a {type(value).__name__}, not only tensors; give a file of weights alone")
    for part in (*value.keys(), *value.values()) if isinstance(value, dict) else value:
        _only_data(part, path, seen)


def load(path: str | pathlib.Path) -> Any:
    """What a file of `torch.save` holds, with a lazy `Tensor` for each tensor.

    Raises:
      UserError: no such file; not torch's zip format (files of before torch 1.6 among them), cut short or broken;
        a pickle that names anything but tensors, of which nothing is run.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a checkpoint that torch.save wrote")
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path}: not a file of torch.save's zip format: cut short, or older than torch 1.6; fetch it again, or let"
            " torch write it anew: torch.save(torch.load(path, weights_only=True), path)"
        )
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            names = archive.namelist()
            _check_sizes(archive, path)
            main = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
            if len(main) != 1:
                raise UserError(f"{path}: a zip, but not one that torch.save wrote (no data.pkl in it)")
            root = main[0].removesuffix("data.pkl")
            if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
                raise UserError(f"{path}: written on a big-endian machine, which is not read here")
            storages = {
                name.removeprefix(f"{root}data/"): _place(archive.getinfo(name), file)
                for name in names
                if name.startswith(f"{root}data/")
            }
            with archive.open(main[0]) as stream:
                held = _Unpickler(stream, path, storages).load()
        _only_data(held, path, set())
    except UserError:
        raise
    except Exception as error:  # a broken pickle can fail in any way
        raise UserError(f"{path}: broken ({type(error).__name__}: {error}); fetch it again") from error
    return held


def _check_sizes(archive: zipfile.ZipFile, path: pathlib.Path) -> None:
    """Refuses what would unpack to more than the file holds, before anything of it is unpacked.

    torch.save compresses nothing, so that no member is larger than the file, and none overlaps another.
    """
    whole = path.stat().st_size
    packed = next((info for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise UserError(
            f"{path}: {short(packed.filename)} in it is compressed ({packed.compress_size} bytes for"
            f" {packed.file_size}), which torch.save never does: refused, and nothing of it was unpacked"
        )
    if sum(info.file_size for info in archive.infolist()) > whole:
        raise UserError(f"{path}: its members are larger than the file: refused; fetch it again")
    for info in archive.infolist():
        name = info.filename.rpartition("/")[2]
        if name in _MOST and info.file_size > _MOST[name]:
            raise UserError(
                f"{path}: {name} in it has {info.file_size} bytes, over the {_MOST[name]} that a file of weights has:"
                " refused, and nothing of it was read"
            )


def _place(info: zipfile.ZipInfo, file: Any) -> tuple[int, int]:
    """Start and size of a stored member's bytes in the file."""
    file.seek(info.header_offset)
    signature, name, extra = struct.unpack("<4s22xHH", file.read(30))
    if signature != b"PK\3\4":
        raise ValueError(f"{info.filename} is not where the index says")
    start = info.header_offset + 30 + name + extra
    if file.seek(0, 2) < start + info.file_size:
        raise ValueError(f"{info.filename} is cut short")
    return start, info.file_size


class TorchTensors(Mapping[str, np.ndarray]):
    """The tensors of one or several torch files by key, each read when asked for.

    Args:
      paths: of files that hold a flat dict of tensors; one dict of a bigger dict, by `inside`.
      inside: the key, where present, below which the dict stands: {'model_state_dict': {...}, 'epoch': 3}.

    Attributes:
      files: the paths.

    Raises:
      UserError: as `load`, or there is no dict of tensors.
    """

    def __init__(self, *paths: str | pathlib.Path, inside: str | None = None):
        self._tensors: dict[str, Tensor] = {}
        self.files = [pathlib.Path(path) for path in paths]
        for path in paths:
            held = load(path)
            if isinstance(held, Mapping) and isinstance(held.get(inside), Mapping):
                held = held[inside]
            found = {k: v for k, v in held.items() if isinstance(v, Tensor)} if isinstance(held, Mapping) else {}
            if not found:
                raise UserError(f"{path}: holds no dict of tensors; give a state dict that torch.save wrote")
            self._tensors |= found

    def __getitem__(self, key: str) -> np.ndarray:
        return np.asarray(self._tensors[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """Of a tensor, without reading it."""
        return self._tensors[key].shape


# --- writing ----------------------------------------------------------------------------------------------------------


class _Pickle:
    """The pickle of nested dicts of arrays, opcode by opcode: no torch is there whose names a pickler could import."""

    def __init__(self):
        self.out = bytearray(pickle.PROTO + b"\x02")
        self.arrays: list[np.ndarray] = []

    def put(self, value: Any) -> None:
        if isinstance(value, Mapping):
            self.out += pickle.EMPTY_DICT + pickle.MARK
            for key, item in value.items():
                self.put(key)
                self.put(item)
            self.out += pickle.SETITEMS
        elif isinstance(value, str):
            text = value.encode()
            self.out += pickle.BINUNICODE + struct.pack("<I", len(text)) + text
        elif isinstance(value, bool):
            self.out += pickle.NEWTRUE if value else pickle.NEWFALSE
        elif isinstance(value, int):
            size = (value.bit_length() + 8) // 8
            self.out += pickle.LONG1 + bytes([size]) + value.to_bytes(size, "little", signed=True)
        elif isinstance(value, tuple):
            self.out += pickle.MARK
            for item in value:
                self.put(item)
            self.out += pickle.TUPLE
        else:
            self.tensor(np.asarray(value, order="C"))

    def tensor(self, array: np.ndarray) -> None:
        storage = next((name for name, dtype in _DTYPES.items() if dtype == array.dtype), None)
        if storage is None:
            raise ValueError(f"torch has no tensor of {array.dtype}")
        self._name("torch._utils", "_rebuild_tensor_v2")
        self.out += pickle.MARK
        self.out += pickle.MARK
        self.put("storage")
        self._name("torch", storage)
        self.put(str(len(self.arrays)))
        self.put("cpu")
        self.put(array.size)
        self.out += pickle.TUPLE + pickle.BINPERSID
        self.put(0)
        self.put(array.shape)
        self.put(tuple(step // array.itemsize for step in array.strides))
        self.put(False)
        self._name("collections", "OrderedDict")
        self.out += pickle.EMPTY_TUPLE + pickle.REDUCE
        self.out += pickle.TUPLE + pickle.REDUCE
        self.arrays.append(array)

    def _name(self, module: str, name: str) -> None:
        self.out += pickle.GLOBAL + f"{module}\n{name}\n".encode()


def save(path: str | pathlib.Path | IO[bytes], held: Mapping[str, Any]) -> None:
    """Writes nested dicts of arrays (and of strings, ints, bools and tuples) as torch does.

    Args:
      path: of the file, or the file open for writing.
      held: for instance {'mlp': {'0.weight': float32[512, 64], ...}, 'pos_enc': float32[1, 256, 64]}.
    """
    stream = _Pickle()
    stream.put(held)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", bytes(stream.out + pickle.STOP))
        archive.writestr("archive/byteorder", "little")
        for i, array in enumerate(stream.arrays):
            archive.writestr(f"archive/data/{i}", array.tobytes())
        archive.writestr("archive/version", "3\n")
