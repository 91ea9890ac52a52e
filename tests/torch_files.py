"""Files as torch.save writes them, made without torch: the standard pickler, and stand-ins for torch's names."""

from __future__ import annotations

import collections
import io
import pickle
import sys
import types
import zipfile

import numpy as np

STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage", "int64": "LongStorage"}


def named(module: str, name: str) -> type:
    """A class that pickles as `module.name`."""
    return type(name, (), {"__module__": module, "__qualname__": name})


REBUILD = named("torch._utils", "_rebuild_tensor_v2")
REBUILD_PARAMETER = named("torch._utils", "_rebuild_parameter")
STORAGE_TYPES = {dtype: named("torch", name) for dtype, name in STORAGES.items()}


class Storage:
    """The elements of one or several tensors; pickled by its number."""

    def __init__(self, array):
        self.array = np.ascontiguousarray(array).reshape(-1)


class View:
    """A tensor over a storage, its strides in elements."""

    def __init__(self, storage, offset, shape, strides, parameter=False):
        self.args = storage, offset, shape, strides, False, collections.OrderedDict()
        self.parameter = parameter


def tensor(array, **fields) -> View:
    """A whole array as a tensor."""
    array = np.asarray(array)
    return View(Storage(array), 0, array.shape, tuple(s // array.itemsize for s in array.strides), **fields)


class _Call:
    def __init__(self, function, args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


class _Pickler(pickle.Pickler):
    """Writes a storage as a persistent id, and a tensor as the call that rebuilds it."""

    def __init__(self, file):
        super().__init__(file, protocol=2)
        self.storages: list[Storage] = []

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        if value not in self.storages:
            self.storages.append(value)
        kind = STORAGE_TYPES[value.array.dtype.name]
        return "storage", kind, str(self.storages.index(value)), "cpu", value.array.size

    def reducer_override(self, value):
        if not isinstance(value, View):
            return NotImplemented
        if value.parameter:
            return REBUILD_PARAMETER, (_Call(REBUILD, value.args), True, collections.OrderedDict())
        return REBUILD, value.args


def pickled(value, monkeypatch, names=()) -> tuple[bytes, list[Storage]]:
    """The pickle of a value, and its storages; `names` are further classes of `named`."""
    modules: dict[str, types.ModuleType] = {"torch": types.ModuleType("torch")}
    for each in (REBUILD, REBUILD_PARAMETER, *STORAGE_TYPES.values(), *names):
        module = modules.setdefault(each.__module__, types.ModuleType(each.__module__))
        setattr(module, each.__name__, each)
    with monkeypatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        file = io.BytesIO()
        pickler = _Pickler(file)
        pickler.dump(value)
    return file.getvalue(), pickler.storages


def write(path, value, monkeypatch, names=(), root="archive", order="little") -> None:
    """Writes a value (dicts of `tensor`s) as torch.save does."""
    main, storages = pickled(value, monkeypatch, names)
    write_parts(path, main, [storage.array.tobytes() for storage in storages], root, order)


def write_parts(path, main: bytes, data: list[bytes], root="archive", order="little") -> None:
    """Writes a pickle and its storages."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{root}/data.pkl", main)
        archive.writestr(f"{root}/byteorder", order)
        for i, part in enumerate(data):
            archive.writestr(f"{root}/data/{i}", part)
        archive.writestr(f"{root}/version", "3\n")


def state_dict(weights) -> collections.OrderedDict:
    """Arrays by key as a module's state dict, with the attribute that torch leaves on it."""
    out = collections.OrderedDict((key, tensor(value)) for key, value in weights.items())
    out._metadata = collections.OrderedDict({"": {"version": 1}})
    return out
