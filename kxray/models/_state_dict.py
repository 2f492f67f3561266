"""Reads a state dict of PyTorch's into arrays: .npz, .safetensors, and .pth without PyTorch."""

import collections
import math
import pickle
import zipfile
from pathlib import Path

import numpy as np

SUFFIXES = (".pth", ".pt", ".safetensors", ".npz")
# Storage class in `torch` -> the type of its elements; bfloat16 is the upper half of a float32.
_STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "|b1",
}


def read(path) -> dict:
    """Name -> array of a file's tensors.

    Args:
        path: .npz (read without pickles), .safetensors (with the package of that name), or .pth / .pt as
            `torch.save` writes them. The zip format since PyTorch 1.6 is read here, admitting nothing but
            tensors; the format before needs PyTorch, which reads it with `weights_only=True`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or it holds something else than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of weights")
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors, ".pth": _read_pth, ".pt": _read_pth}
    if path.suffix not in readers:
        raise ValueError(
            f"{path}: expected a state dict as {', '.join(SUFFIXES)}, got {path.suffix or 'none'}"
        )
    arrays = readers[path.suffix](path)
    return {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}


def _read_npz(path):
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a readable .npz of arrays: {_line(error)}") from error


def _read_safetensors(path):
    try:
        import safetensors
        from safetensors.numpy import load_file
    except ImportError:
        raise ValueError(f"{path}: reading .safetensors needs its package: pip install safetensors") from None
    try:
        return load_file(path)
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError, OSError) as error:
        raise ValueError(f"{path}: not a readable .safetensors file: {_line(error)}") from error


def _read_pth(path):
    if not zipfile.is_zipfile(path):
        return _read_pth_with_torch(path)
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
            if len(pickled) != 1:
                raise ValueError("a zip file, but not one that torch.save wrote: no data.pkl")
            return _tensors_of(_TensorUnpickler(archive, pickled[0]).load())
    except ValueError as error:
        raise ValueError(f"{path}: {_line(error)}") from error
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a readable file of torch.save: {_line(error)}") from error
    except (LookupError, TypeError, AttributeError, ArithmeticError, MemoryError) as error:
        raise ValueError(f"{path}: not a state dict of torch.save: {_line(error)}") from error


def _tensors_of(found):
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not any(isinstance(value, np.ndarray) for value in found.values()):
        raise ValueError("holds no state dict; write one with torch.save(model.state_dict(), ...)")
    return found


def _read_pth_with_torch(path):
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"{path}: not a zip file as torch.save has written since PyTorch 1.6; older files are read where "
            "PyTorch is installed, or save it again with a newer one"
        ) from None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError and others, by version
        raise ValueError(f"{path}: not a readable file of torch.save: {_line(error)}") from error
    if isinstance(found, dict):
        found = found["state_dict"] if isinstance(found.get("state_dict"), dict) else found
        found = {
            name: value.detach().float().numpy() if torch.is_tensor(value) else value
            for name, value in found.items()
        }
    try:
        return _tensors_of(found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles tensors and nothing else: a pickle may otherwise run any code."""

    def __init__(self, archive, name):
        super().__init__(archive.open(name))
        self.archive = archive
        self.folder = name.rpartition("/")[0]
        order = f"{self.folder}/byteorder"
        if order in archive.namelist() and archive.read(order).strip() != b"little":
            raise ValueError("its numbers are big-endian; save it again on a little-endian machine")

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, requires_grad, hooks: tensor
        if module == "torch" and name in _STORAGES:
            return name
        raise ValueError(
            f"asks for {module}.{name} on loading, refused: only tensors are read; save the state dict "
            "alone, torch.save(model.state_dict(), ...)"
        )

    def persistent_load(self, key):
        kind, storage, number, _, length = key
        if kind != "storage" or storage not in _STORAGES:
            raise ValueError(f"not a state dict of torch.save: unknown reference {kind!r}")
        content = self.archive.read(f"{self.folder}/data/{number}")
        numbers = np.frombuffer(content, _STORAGES[storage])
        if len(numbers) < length:
            raise ValueError(f"damaged: a tensor of {length} numbers has {len(numbers)}")
        if storage == "BFloat16Storage":
            numbers = (numbers.astype("<u4") << 16).view("<f4")
        return numbers


def _rebuild_tensor(storage, offset, shape, strides, *_):
    reached = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True)) + 1
    if math.prod(shape) == 0:
        return np.zeros(shape, storage.dtype)
    if min([offset, *strides], default=0) < 0 or reached > len(storage):
        raise ValueError("a tensor reaches beyond its storage; the file is damaged")
    item = storage.itemsize
    view = np.lib.stride_tricks.as_strided(
        storage[offset:], shape, [stride * item for stride in strides], writeable=False
    )
    return np.ascontiguousarray(view).reshape(shape)


def _line(error):
    return (str(error).splitlines() or [type(error).__name__])[0]
