"""Archives of arrays: read whole, or refused in one line that names the file."""

import numpy as np
import pytest

from kxray.io.files import read_npz


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "things.npz"
    np.savez_compressed(path, a=np.arange(2000) % 7, b=np.float32([1, 2]))
    return path


def test_the_arrays_asked_for(archive):
    found = read_npz(archive, ("b",), "thing")
    assert list(found) == ["b"] and found["b"].tolist() == [1, 2]


def test_every_damage_is_one_line(archive, tmp_path):
    whole, damaged = archive.read_bytes(), tmp_path / "damaged.npz"
    for place in range(0, len(whole), 3):
        damaged.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            read_npz(damaged, ("a", "b"), "thing")
        except ValueError as error:
            assert str(error).startswith(f"{damaged}: not a readable thing (") and "\n" not in str(error)
    for content in (b"", whole[:40], whole[: len(whole) // 2], b"no archive"):
        damaged.write_bytes(content)
        with pytest.raises(ValueError, match="not a readable thing"):
            read_npz(damaged, ("a",), "thing")


def test_what_is_no_archive_of_such_arrays(archive, tmp_path):
    np.save(tmp_path / "one.npy", np.ones(3))
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    for path, words in (
        (tmp_path / "one.npy", "one array, not an archive"),
        (tmp_path / "objects.npz", "Object arrays cannot be loaded"),
        (tmp_path / "absent.npz", "No such file"),
    ):
        with pytest.raises(ValueError, match=words):
            read_npz(path, ("a",), "thing")
    with pytest.raises(ValueError, match="c is not a file in the archive"):
        read_npz(archive, ("c",), "thing")
