"""Opening and writing sets of tensorflow-datasets without TensorFlow: by name, or a folder that holds one.

Written is what its makers' tools write: `dataset_info.json`, `features.json`, and ArrayRecord shards of examples.
"""

from __future__ import annotations

import io
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline.errors import UserError, reason, remedy

INFO, VERSION = "dataset_info.json", "1.0.0"
SHARD = 5000  # examples a file


def split_spec(spec: str) -> tuple[str, str]:
    """`voc/2007:train` or `DIR:train` -> the set and its split; empty where none is named."""
    name, colon, split = spec.rpartition(":")
    return (name, split) if colon and "/" not in split and "\\" not in split else (spec, "")


def open_builder(name: str, data_dir: str | pathlib.Path = "") -> Any:
    """The builder of a set that is prepared.

    Args:
      name: `voc/2007`; or a folder that holds a `dataset_info.json`.
      data_dir: of tensorflow-datasets; empty for its own.

    Raises:
      UserError: no such set, or it is not prepared.
    """
    import tensorflow_datasets

    tfds: Any = tensorflow_datasets  # its types know fewer options than it takes
    what = f"tfds:{name}"
    try:
        if (pathlib.Path(name) / INFO).is_file():
            return tfds.builder_from_directory(name)
        where = {"data_dir": str(data_dir)} if str(data_dir) else {}
        try:
            return tfds.builder(name, **where, file_format="array_record")
        except ImportError:  # the code of some sets (coco) needs TensorFlow; what they have prepared does not
            return tfds.core.read_only_builder.builder_from_files(name, **where)
    except Exception as error:  # it raises many kinds: unknown set, not prepared, no such version
        told = " ".join(str(error).split())[:200]
        raise UserError(
            f"{what}: cannot be opened ({type(error).__name__}: {told}); prepare it first, with"
            f" file_format='array_record', or give a folder that holds {INFO}"
        ) from error


def open_split(name: str, builder: Any, data_dir: Any, wanted: Iterable[str], **options: Any) -> tuple[str, Any]:
    """The first split of those that are wanted which is there, as random access to its records.

    Args:
      options: of `as_data_source`, such as decoders.

    Raises:
      UserError: none is, or its files are not there.
    """
    wanted, there = list(wanted), list(builder.info.splits)
    if there and not set(wanted) & set(there):
        raise UserError(f"tfds:{name}: no split {' or '.join(wanted)}; it has {', '.join(there)}: tfds:{name}:SPLIT")
    failure: Exception | None = None
    for split in (split for split in wanted if split in there or not there):
        try:
            return split, builder.as_data_source(split=split, **options)
        except Exception as error:
            failure = failure or error
    told = " ".join(str(failure).split())[:160]
    raise UserError(
        f"tfds:{name}: not prepared in {data_dir or 'its default folder'} ({type(failure).__name__}: {told}); run"
        " download_and_prepare(file_format='array_record') first"
    ) from failure


class Records:
    """Records of a split, opened when they are first read, so that it pickles: workers open their own.

    Args:
      spec: `NAME[:SPLIT]`; see `open_builder`. wanted: splits to choose from where the spec names none.
      skip: features that are left as they are stored (encoded pictures).
    """

    def __init__(self, spec: str, data_dir: str | pathlib.Path, wanted: Iterable[str], skip: Iterable[str] = ()):
        self.name, split = split_spec(spec)
        self.data_dir, self._wanted, self._skip = str(data_dir), [split] if split else list(wanted), tuple(skip)
        self.builder = open_builder(self.name, data_dir)
        self._source: Any = None
        self.split, self._source = self._open()

    @property
    def features(self) -> Mapping[str, Any]:
        """The features of a record, by name."""
        return self.builder.info.features

    def _open(self) -> tuple[str, Any]:
        import tensorflow_datasets as tfds

        decoders = {key: tfds.decode.SkipDecoding() for key in self._skip}
        return open_split(self.name, self.builder, self.data_dir, self._wanted, decoders=decoders or None)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "builder": None, "_source": None}

    def __len__(self) -> int:
        return len(self[None])

    def __getitem__(self, index: int | None) -> Any:
        if self._source is None:
            self.builder = open_builder(self.name, self.data_dir)
            self.split, self._source = self._open()
        if index is None:
            return self._source
        try:
            return self._source[index]
        except Exception as error:  # a missing shard, a broken record: array_record and others raise many kinds
            told = " ".join(str(error).split())[:160]
            raise UserError(
                f"tfds:{self.name}, record {index}: cannot be read ({told}); prepare the set again", "unreadable record"
            ) from error


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG: what an `Image` feature stores."""
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def write(
    folder: pathlib.Path,
    name: str,
    features: Any,
    splits: Mapping[str, Iterable[Mapping[str, Any]]],
    description: str,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, int]:
    """Writes a set into `folder/VERSION`; it appears when it is whole.

    Args:
      name: of the set. features: a `tfds.features.FeaturesDict`.
      splits: records of each: bytes (pictures as stored), texts, numbers or arrays of numbers; `objects/bbox` is the
        feature bbox of a sequence of objects.

    Returns:
      The number of records of each split.

    Raises:
      UserError: it cannot be written.
    """
    import tensorflow_datasets as tfds

    final = folder / VERSION
    partial = folder / f"{VERSION}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        infos = [_write_split(tfds, partial, name, split, rows, progress) for split, rows in splits.items()]
        tfds.folder_dataset.write_metadata(
            data_dir=str(partial), features=features, split_infos=infos, description=description, check_data=False
        )
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{final}: cannot be written ({reason(error)}); {remedy(error)}") from error
    return {info.name: info.num_examples for info in infos}


def _write_split(
    tfds: Any, folder: pathlib.Path, name: str, split: str, rows: Iterable[Any], progress: Callable[[], None]
) -> Any:
    """Writes the shards of a split; their number is in their names, so they are named at the end."""
    from array_record.python.array_record_module import ArrayRecordWriter

    lengths, size, writer = [], 0, None
    for row in rows:
        if writer is None or lengths[-1] == SHARD:
            if writer is not None:
                writer.close()
            writer = ArrayRecordWriter(str(folder / f"{split}.{len(lengths)}"), "group_size:1")
            lengths.append(0)
        content = _example(row)
        writer.write(content)
        lengths[-1], size = lengths[-1] + 1, size + len(content)
        progress()
    if writer is not None:
        writer.close()
    template = tfds.core.ShardedFileTemplate(
        data_dir=str(folder), dataset_name=name, split=split, filetype_suffix="array_record"
    )
    for k in range(len(lengths)):
        target = template.sharded_filepath(shard_index=k, num_shards=len(lengths))
        (folder / f"{split}.{k}").rename(pathlib.Path(str(target)))
    return tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template)


def _example(row: Mapping[str, Any]) -> bytes:
    """A record as the `Example` that tensorflow-datasets reads."""
    from tensorflow_datasets.proto import tf_example_pb2

    messages: Any = tf_example_pb2  # made when it is imported: its types do not know it
    example = messages.Example()
    for key, value in row.items():
        feature = example.features.feature[key]
        if isinstance(value, bytes | str):
            feature.bytes_list.value.append(value if isinstance(value, bytes) else value.encode())
            continue
        numbers = np.asarray(value).ravel()
        (feature.float_list if numbers.dtype.kind == "f" else feature.int64_list).value.extend(numbers.tolist())
    return example.SerializeToString()
