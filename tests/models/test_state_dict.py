"""State dicts of PyTorch's without PyTorch: what is read, and what is refused in one line."""

import io
import os
import pickle
import sys
import zipfile

import numpy as np
import pytest

from kxray.models import _state_dict

ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def text(word):
    return b"V" + word.encode() + b"\n"


def integers(*numbers):
    return b"(" + b"".join(b"I%d\n" % number for number in numbers) + b"t"


def tensor(storage, number, length, shape, strides, offset=0):
    """The pickle that torch.save writes for a tensor: its storage by reference, and how to look at it."""
    reference = b"(" + text("storage") + b"ctorch\n" + storage.encode() + b"\n" + text(str(number))
    reference += text("cpu") + b"I%d\n" % length + b"tQ"
    rebuilt = reference + b"I%d\n" % offset + integers(*shape) + integers(*strides) + b"\x89" + ORDERED_DICT
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + rebuilt + b"tR"


def write_pth(path, tensors, storages, order=b"little"):
    items = b"".join(text(name) + pickled for name, pickled in tensors.items())
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", b"\x80\x02" + ORDERED_DICT + b"(" + items + b"u.")
        archive.writestr("net/byteorder", order)
        for number, storage in enumerate(storages):
            archive.writestr(f"net/data/{number}", storage.tobytes())
    return path


def test_tensors_views_and_types(tmp_path):
    numbers = np.arange(12, dtype="<f4")
    path = write_pth(
        tmp_path / "net.pth",
        {
            "weight": tensor("FloatStorage", 0, 12, (3, 4), (4, 1)),
            "transposed": tensor("FloatStorage", 0, 12, (4, 3), (1, 4)),
            "last two": tensor("FloatStorage", 0, 12, (2,), (1,), offset=10),
            "count": tensor("LongStorage", 1, 1, (), ()),
            "half": tensor("HalfStorage", 2, 2, (2,), (1,)),
            "bfloat16": tensor("BFloat16Storage", 3, 2, (2,), (1,)),
            "empty": tensor("FloatStorage", 0, 12, (0, 4), (4, 1)),
        },
        [numbers, np.array([7], "<i8"), np.array([1.5, -2], "<f2"), np.array([0x3F80, 0xC000], "<u2")],
    )
    read = _state_dict.read(path)
    np.testing.assert_array_equal(read["weight"], numbers.reshape(3, 4))
    np.testing.assert_array_equal(read["transposed"], numbers.reshape(3, 4).T)
    np.testing.assert_array_equal(read["last two"], [10, 11])
    assert read["count"] == 7 and read["count"].shape == () and read["empty"].shape == (0, 4)
    np.testing.assert_array_equal(read["half"], [1.5, -2])
    np.testing.assert_array_equal(read["bfloat16"], np.float32([1, -2]))


def test_torch_itself_writes_what_we_read(tmp_path):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(3, 2)
    torch.save({"state_dict": layer.state_dict(), "epoch": 3}, tmp_path / "new.pth")
    torch.save(layer.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(layer, tmp_path / "whole.pth")
    for name in ("new.pth", "old.pt"):
        read = _state_dict.read(tmp_path / name)
        assert set(read) == {"weight", "bias"}
        np.testing.assert_array_equal(read["weight"], layer.weight.detach().numpy())
    with pytest.raises(ValueError, match="asks for torch.nn.modules.linear.Linear on loading, refused"):
        _state_dict.read(tmp_path / "whole.pth")


class Malicious:
    def __reduce__(self):
        return os.system, ("touch owned",)


def test_a_pickle_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("evil.pth", "w") as archive:
        archive.writestr("net/data.pkl", pickle.dumps({"weight": Malicious()}, protocol=2))
    with pytest.raises(ValueError, match=r"evil.pth: asks for \w+.system on loading, refused: only tensors"):
        _state_dict.read("evil.pth")
    np.savez("evil.npz", weight=np.array([Malicious()], dtype=object))
    with pytest.raises(ValueError, match="evil.npz: not a readable .npz of arrays: .*allow_pickle"):
        _state_dict.read("evil.npz")
    assert not (tmp_path / "owned").exists()


def test_npz_and_safetensors(tmp_path):
    weight = np.arange(6, dtype="float32").reshape(2, 3)
    np.savez(tmp_path / "net.npz", weight=weight)
    np.testing.assert_array_equal(_state_dict.read(tmp_path / "net.npz")["weight"], weight)
    numpy_format = pytest.importorskip("safetensors.numpy")
    numpy_format.save_file({"weight": weight}, tmp_path / "net.safetensors")
    np.testing.assert_array_equal(_state_dict.read(tmp_path / "net.safetensors")["weight"], weight)
    (tmp_path / "text.safetensors").write_text("nothing at all")
    with pytest.raises(ValueError, match="text.safetensors: not a readable .safetensors file"):
        _state_dict.read(tmp_path / "text.safetensors")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    for package in ("safetensors", "torch"):
        monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "net.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="net.safetensors: .* needs its package: pip install safetensors"):
        _state_dict.read(tmp_path / "net.safetensors")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C))
    with pytest.raises(ValueError, match="old.pth: not a zip file as torch.save has written since"):
        _state_dict.read(tmp_path / "old.pth")


@pytest.mark.parametrize(
    ("tensors", "storages", "words"),
    [
        ({"a": tensor("FloatStorage", 0, 4, (5,), (1,))}, [np.zeros(4, "f4")], "beyond its storage"),
        ({"a": tensor("FloatStorage", 0, 4, (2,), (1,), -1)}, [np.zeros(4, "f4")], "beyond its storage"),
        ({"a": tensor("FloatStorage", 0, 9, (4,), (1,))}, [np.zeros(4, "f4")], "of 9 numbers has 4"),
        ({"a": tensor("FloatStorage", 3, 4, (4,), (1,))}, [], "no item named 'net/data/3'"),
        (
            {"a": tensor("QInt8Storage", 0, 4, (4,), (1,))},
            [np.zeros(4, "f4")],
            "torch.QInt8Storage .* refused",
        ),
        ({"epoch": b"I3\n"}, [], "holds no state dict"),
    ],
)
def test_damaged_files_are_one_line(tensors, storages, words, tmp_path):
    path = write_pth(tmp_path / "net.pth", tensors, storages)
    with pytest.raises(ValueError, match=f"net.pth: .*{words}") as refused:
        _state_dict.read(path)
    assert "\n" not in str(refused.value)


def test_files_that_are_something_else(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file of weights"):
        _state_dict.read(tmp_path / "absent.pth")
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match="expected a state dict as .pth, .pt, .safetensors, .npz, got .onnx"):
        _state_dict.read(tmp_path / "net.onnx")
    write_pth(tmp_path / "big.pth", {}, [], order=b"big")
    with pytest.raises(ValueError, match="big-endian"):
        _state_dict.read(tmp_path / "big.pth")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("readme.txt", "hello")
    (tmp_path / "other.pth").write_bytes(content.getvalue())
    with pytest.raises(ValueError, match="other.pth: a zip file, but not one that torch.save wrote"):
        _state_dict.read(tmp_path / "other.pth")
