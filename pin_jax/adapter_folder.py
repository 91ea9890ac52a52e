"""An adapter as a folder to hand on: the insert, what it belongs to, and a model card; on disk or on the hub.

insert.safetensors and its card insert.json are those of `adapters`; config.json names the VLM and what the adapter was
trained with, so that `PIN.from_pretrained(FOLDER)` needs nothing else; README.md is the hub's model card.
"""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.errors import UserError, reason
from pin_jax import adapters, train
from pin_jax.adapters import INSERT
from pin_jax.runtime import files
from pin_jax.vlm import VLM
from pin_jax.weights.files import is_hub_id, read_object
from pin_jax.weights.parameters import count_parameters

KIND = "pin_jax adapter"  # how config.json says that a folder holds an adapter, and no VLM
CARD = """---
library_name: pin-gem
{base}tags:
- object-localization
- vision-language
- jax
---

# {title}

{about} (`{method}`, {parameters:,} parameters) for the frozen VLM `{vlm}`, trained on pasted objects alone: the VLM,
none of whose weights is changed, writes the box of what it is asked for. The method is that of *PIN: Positional Insert
Unlocks Object Localisation Abilities in VLMs* (Dorkenwald et al., CVPR 2024). `insert.safetensors` names the weights
that it belongs to and is refused on others.

```python
from pin_jax import PIN

pin = PIN.from_pretrained("{name}")
found = pin.locate(["photo.jpg"], ["cat", "remote control"])[0]
pin.draw("photo.jpg", found).save("boxes.png")
```

## Training

| entry | value |
|---|---|
{entries}

## Results

{results}
"""
SHOWN = ("mIoU", "mIoU_M", "mIoU_L", "P@0.5", "queries")  # of the results in an insert's card


def write(
    folder: str | pathlib.Path,
    config: ConfigDict,
    vlm: VLM,
    params: Any,
    results: Mapping[str, Any] | None = None,
    name: str = "",
) -> None:
    """Writes an adapter's folder.

    Args:
      config: of its training, or of its VLM; method and method_options are those of `params`.
      results: scores of `metrics.summary`, for the card. name: that the card calls it by; the folder if empty.

    Raises:
      UserError: it cannot be written.
    """
    folder = pathlib.Path(folder)
    files.make_folder(folder)
    adapters.save(folder / INSERT, params, config, vlm)
    if results:
        adapters.note(folder / INSERT, dict(results))
    entries = train.training_entries(json.loads(config.to_json_best_effort()))
    files.write_json(folder / "config.json", {"kind": KIND} | entries)
    base = f"base_model: {config.vlm}\nbase_model_relation: adapter\n" if is_hub_id(config.vlm) else ""
    rows = [f"| `{key}` | `{json.dumps(value)}` |" for key, value in entries.items() if value not in (None, "")]
    scores = {key: results[key] for key in SHOWN if results.get(key) is not None} if results else {}
    table = [f"| {' | '.join(scores)} |", "|---" * len(scores) + "|"]
    table += [f"| {' | '.join(f'{v:.3f}' if isinstance(v, float) else str(v) for v in scores.values())} |"]
    text = CARD.format(
        base=base,
        title=name or folder.resolve().name,
        about="A positional insert" if config.method == "pin" else "An adapter",
        method=config.method,
        parameters=count_parameters(params),
        vlm=config.vlm,
        name=name or folder.resolve().name,
        entries="\n".join(rows),
        results="\n".join(table) if scores else "None were measured where this card was written.",
    )
    files.write_bytes(folder / "README.md", text.encode())


def read(folder: pathlib.Path) -> dict[str, Any] | None:
    """Entries of the config that an adapter's folder names: its VLM and the grid; None where it holds no adapter.

    Raises:
      UserError: a broken config.json.
    """
    path = folder / "config.json"
    held = read_object(path) if path.is_file() else {}
    if held.get("kind") != KIND:
        return None
    kinds = {"vlm": str, "language_model": str, "vision": str, "placement": str, "grid": int, "example": list}
    about = {key: held.get(key, kind()) for key, kind in kinds.items()}
    wrong = [key for key, value in about.items() if not isinstance(value, kinds[key])]
    if wrong or not about["vlm"]:
        raise UserError(f"{path}: {', '.join(wrong) or 'vlm'} is missing or of another type; fetch the adapter again")
    return about


def push(repo: str, private: bool, **of_write: Any) -> str:
    """Writes an adapter's folder to the hub, as the account that is logged in; returns its address.

    Raises:
      UserError: no hub id, no account, no permission, or the hub cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub import errors

    if not is_hub_id(repo):
        raise UserError(f"push_to_hub {repo!r}: expected owner/name")
    try:
        token = huggingface_hub.get_token()
        if token is None:
            raise UserError(f"push_to_hub {repo!r}: no account; log in (hf auth login, or HF_TOKEN) and repeat")
        with tempfile.TemporaryDirectory() as folder:
            write(folder, **of_write, name=repo)
            api = huggingface_hub.HfApi(token=token)
            api.create_repo(repo, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message="An adapter of pin-gem"))
    except errors.HfHubHTTPError as error:
        raise UserError(
            f"push_to_hub {repo!r}: the hub refuses it ({reason(error)}); use a token that may write to {repo}"
        ) from error
    except UserError:
        raise
    except Exception as error:  # offline, proxy, time-out: every transport has its own kind
        raise UserError(
            f"push_to_hub {repo!r}: the hub cannot be reached ({type(error).__name__}); save_pretrained writes the same"
            " folder to a disk"
        ) from error
