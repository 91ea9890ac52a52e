"""What `PIN.from_pretrained` is given: a VLM by name, folder or hub id, an insert, and entries of the VLM's config."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from configs.lib import catalogue, pin, schema
from input_pipeline.errors import UserError
from pin_jax import adapter_folder
from pin_jax.adapters import INSERT
from pin_jax.runtime.files import AnyPath, is_remote
from pin_jax.weights import files, published, registry

# Names of the small VLMs that ship, each with its insert -> where it stands, and the config that trains on it.
SHIPPED = {
    "tiny_blip2": ("assets/tiny_blip2", "pin_blip2.py", "tiny"),
    "tiny_flamingo": ("assets/tiny_flamingo", "pin_flamingo.py", "tiny"),
}
_CONFIGS = {
    "pin_blip2.py": published.BLIP2, "pin_flamingo.py": published.OPENFLAMINGO, "pin_smolvlm.py": published.SMOLVLM,
}  # fmt: skip
NO_INSERT = "none"
FETCHED = ("*.json", "*.safetensors", "*.md")  # of a hub repository that holds an adapter


def config_of(source: str | pathlib.Path, overrides: Mapping[str, Any]) -> ConfigDict:
    """The config of a VLM: that of the model's own file in configs/, or what all published or all small VLMs share.

    Args:
      overrides: entries, nested (`eval={"decoder": "beam"}`) or by path (`"eval.decoder"`).

    Raises:
      UserError: no such entry, or a value that cannot be.
    """
    name = str(source)
    if name in SHIPPED or name in [folder for folder, _, _ in SHIPPED.values()]:
        _, file, variant = SHIPPED[name.removeprefix("assets/")]
        config = catalogue.get_config(catalogue.CONFIGS / file, variant)
    else:
        known = {vlm.id: (file, variant) for file, models in _CONFIGS.items() for variant, vlm in models.items()}
        if name in known:
            file, variant = known[name]
            config = catalogue.get_config(catalogue.CONFIGS / file, variant)
        else:
            config = pin.tiny(name) if _is_small(source) else pin.published()
            config.vlm = name
    config.run = "predict"
    config.eval.decoder = "expected_iou"  # every answer is a box, and its score says how good it is
    return changed(config, overrides)


def changed(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """A copy of a config with other entries, checked as `main.py` checks it.

    Raises:
      UserError: no such entry, or a value that cannot be.
    """
    config = config.copy_and_resolve_references()
    for path, value in overrides.items():
        *parts, last = path.split(".")
        try:
            with config.unlocked():
                inner = config
                for part in parts:
                    if part not in inner:  # the check below refuses it, with what is near
                        inner[part] = ConfigDict()
                    inner = inner[part]
                if isinstance(value, Mapping | ConfigDict) and isinstance(inner.get(last), ConfigDict):
                    inner[last].update(value)
                else:
                    inner[last] = value
        except (TypeError, AttributeError, KeyError) as error:
            raise UserError(f"config.{path} {value!r}: {error}") from error
    schema.check(config)
    return config


def _is_small(source: str | pathlib.Path) -> bool:
    """Whether a source is the folder of a small VLM of this project."""
    folder = files.of_project(source)
    return folder.is_dir() and (folder / "config.json").is_file() and registry.reader(folder) is None


def adapter(source: str | pathlib.Path) -> tuple[dict[str, Any], pathlib.Path] | None:
    """What an adapter's folder says of its VLM, and its insert; None where a source is no folder of an adapter.

    Args:
      source: a folder, or the hub id of one.

    Raises:
      UserError: a broken folder, or what the hub says.
    """
    name = str(source)
    if name in SHIPPED or any(name == vlm.id for models in _CONFIGS.values() for vlm in models.values()):
        return None
    folder = files.of_project(source)
    if not folder.is_dir():
        if not files.is_hub_id(name):
            return None
        folder = files.resolve(source)
    about = adapter_folder.read(folder)
    return None if about is None else (about, folder / INSERT)


def insert_path(source: str | pathlib.Path, insert: str | pathlib.Path | None) -> AnyPath | None:
    """The file of an insert; None for the frozen VLM as it is.

    Args:
      source: of the VLM.
      insert: a file, also of a bucket, an adapter's folder or hub id, `none`; None takes the one beside a small VLM.

    Raises:
      UserError: there is none.
    """
    if insert is None or insert == "":
        shipped = files.of_project(SHIPPED[str(source)][0] if str(source) in SHIPPED else source) / INSERT
        return shipped if shipped.is_file() else None
    if str(insert) == NO_INSERT:
        return None
    if str(insert).startswith(("https:", "http:")):
        raise UserError(
            f"insert {insert}: a URL, and nothing is fetched; save it and give the file's path, or a hub id"
        )
    if is_remote(insert):
        return epath.Path(insert)  # whose reader says what is missing
    path = files.of_project(insert)
    if path.is_dir():
        path = path / INSERT
    elif not path.exists() and files.is_hub_id(str(insert)) and not path.suffix:
        path = files.resolve(str(insert), FETCHED) / INSERT
    if not path.is_file():
        raise UserError(
            f"insert {insert}: no such file; give an {INSERT}, a folder or hub id that holds one, or {NO_INSERT} (the"
            " frozen VLM as it is)"
        )
    return path
