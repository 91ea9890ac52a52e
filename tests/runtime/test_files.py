"""Files of a run: whole or as they were, and the remedy that fits; local and in a bucket."""

from __future__ import annotations

import errno
import resource

import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from input_pipeline.errors import UserError, remedy
from pin_jax.runtime import files, reporting
from pin_jax.runtime.processes import workdirs


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "free disk space"),
        (errno.EDQUOT, "free disk space"),
        (errno.EFBIG, "free disk space"),
        (errno.EACCES, "allow this user to write there"),
        (errno.EROFS, "allow this user to write there"),
        (errno.ENOTDIR, "move away what stands there"),
        (errno.EISDIR, "move away what stands there"),
        (errno.EIO, "choose another --workdir"),
    ],
)
def test_the_remedy_fits_the_error(number, words):
    found = remedy(OSError(number, "words"))
    assert words in found and ("free" in found) == (words == "free disk space")


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path):
    path = tmp_path / "results.json"
    files.write_json(path, {"a": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # looks to a program as a full disk does
    try:
        with pytest.raises(UserError, match=r"results.json: cannot be written .*; free disk space"):
            files.write_json(path, list(range(100)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == '{\n "a": 1\n}\n' and [p.name for p in tmp_path.iterdir()] == ["results.json"]
    (tmp_path / "picture.png").mkdir()
    with pytest.raises(UserError, match=r"picture.png: cannot be written .*; move away what stands there"):
        files.write_bytes(tmp_path / "picture.png", b"")
    (tmp_path / "other.partial").mkdir()
    with pytest.raises(UserError, match=r"other.partial: cannot be written .*; move away what stands there"):
        files.write_json(tmp_path / "other.json", {})


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A bucket that is a folder: what epath asks of Google's storage, it asks of the disk."""

    class Disk(DirFileSystem):
        protocol = "gcs"

        def __init__(self, **_):
            super().__init__(str(tmp_path / "buckets"), LocalFileSystem(auto_mkdir=True))

        @classmethod
        def _strip_protocol(cls, path):
            return path.removeprefix("gs://")

    (tmp_path / "buckets" / "b").mkdir(parents=True)
    monkeypatch.setattr(type(backend.fsspec_backend), "_get_filesystem", lambda self, name: Disk())
    return tmp_path / "buckets" / "b"


def test_a_run_in_a_bucket(bucket):
    with workdirs.claimed("gs://b/run") as workdir:
        files.write_json(workdir / "results.json", [1])
        log = reporting.Log.__new__(reporting.Log)  # its scalars alone: TensorBoard has its own way into buckets
        log._path, log._held = workdir / "scalars.jsonl", ""
        log._append('{"step": 1}\n')
        log._append('{"step": 2}\n')
        with pytest.raises(UserError, match="a bucket cannot tell whether that run still goes on"):
            with workdirs.claimed("gs://b/run"):
                raise AssertionError
    assert (bucket / "run" / "results.json").read_text() == "[\n 1\n]\n"
    assert [row["step"] for row in reporting.read_scalars(epath.Path("gs://b/run"))] == [1, 2]
    assert not (bucket / "run" / workdirs.HOLDER).exists()


def test_scalars_that_a_power_loss_cut(tmp_path):
    path = tmp_path / "scalars.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 3.0}\n{"step": 2, "lo')
    log = reporting.Log(tmp_path)
    log.scalars(2, loss=2.0)
    log.close()
    assert reporting.read_scalars(tmp_path) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}]
    path.write_bytes(b"\xff\n[1]\n7\n" + path.read_bytes() + bytes(64))
    assert [row["step"] for row in reporting.read_scalars(tmp_path)] == [1, 2]
