"""The tiny CLIP of the GEM authors' outputs, through the public interface."""

from __future__ import annotations

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from safetensors import numpy as safetensors
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gem_jax import GEM
from gem_jax.clip import CLIP, CLIPConfig, TextConfig
from gem_jax.pretrained import ImageText, skeleton
from pin_jax.models.vit import ViTConfig
from pin_jax.weights.convert import convert
from pin_jax.weights.image_text import open_clip

GOLDEN = pathlib.Path(__file__).parent / "golden"
ACTS = {"gelu": "gelu", "quickgelu": "quick_gelu"}
SETTINGS = {
    "default": {},
    "iter0": {"iterations": 0},
    "temp5": {"temperature": 5.0},
    "depth2": {"depth": 2},
}


def arrays() -> dict[str, np.ndarray]:
    """Everything that `golden/split_gem.py` wrote."""
    out = {}
    for path in sorted(GOLDEN.glob("gem_*.npz")):
        with np.load(path, allow_pickle=False) as file:
            out |= {key: file[key] for key in file.files}
    return out


def weights(data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights under open_clip's names."""
    return {key[3:]: value for key, value in data.items() if key.startswith("sd/")}


def module(meta: dict, act: str) -> CLIP:
    """The CLIP that the file's `meta` describes."""
    vision, text = meta["vision"], meta["text"]
    wide, high = vision["width"], text["width"]
    tower = ViTConfig(image_size=vision["image_size"], patch=vision["patch_size"], width=wide, depth=vision["layers"],
                      heads=wide // vision["head_width"], mlp=4 * wide, act=act)  # fmt: skip
    form = TextConfig(vocab=text["vocab_size"], context=text["context_length"], width=high, depth=text["layers"],
                      heads=text["heads"], mlp=4 * high, act=act)  # fmt: skip
    return CLIP(CLIPConfig(tower, form, meta["embed_dim"]))


def gem(data: dict[str, np.ndarray], act: str, dtype=np.float32, **options) -> GEM:
    """GEM on it; `act` is the file's word."""
    clip = module(json.loads(str(data["meta"])), ACTS[act])
    params = convert(weights(data), open_clip(), skeleton(clip))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    return GEM(ImageText(clip, params, words(), end="</s>"), **{"size": 64} | options)


def write_open_clip(folder: pathlib.Path, data: dict[str, np.ndarray], quick_gelu: bool) -> pathlib.Path:
    """The same model as an open_clip folder (without a tokenizer)."""
    meta = json.loads(str(data["meta"]))
    folder.mkdir(parents=True, exist_ok=True)
    vision = {key: meta["vision"][key] for key in ("layers", "width", "head_width", "patch_size", "image_size")}
    config = {"model_cfg": {"embed_dim": meta["embed_dim"], "quick_gelu": quick_gelu, "vision_cfg": vision,
                            "text_cfg": meta["text"]}, "preprocess_cfg": {}}  # fmt: skip
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    safetensors.save_file({k: np.array(v, order="C") for k, v in weights(data).items()},
                          folder / "open_clip_model.safetensors")  # fmt: skip
    return folder


def words() -> PreTrainedTokenizerFast:
    """A tokenizer of a few words for the tiny CLIP; its end token has the highest id, as CLIP's has."""
    known = "a an photo of cat dog sky grass red apple picture the ! . ,".split()
    table = {"<pad>": 0, "<unk>": 1, **{word: 2 + i for i, word in enumerate(known)}, "</s>": 511}
    tokenizer = Tokenizer(models.WordLevel(table, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")
    return fast


def photo(seed: int = 0, size: tuple[int, int] = (50, 70)) -> np.ndarray:
    """A random picture uint8[H, W, 3] with coarse structure."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))
