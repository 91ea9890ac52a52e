"""A frozen VLM as one object: module, parameters, tokenizer, box codec and identity; read from a folder or the hub.

A small VLM's folder, which is also written, holds config.json (the dataclasses of `pin_jax.models`), model.safetensors
(`lm/blocks/qkv/kernel`, ...), and the tokenizer in transformers' own files.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors import numpy as safetensors

from input_pipeline.errors import UserError
from input_pipeline.text.box_codec import BoxCodec
from input_pipeline.text.prompts import Frame
from pin_jax.models import layers
from pin_jax.models.attention import ATTENTION
from pin_jax.models.blip2 import Blip2, Blip2Config
from pin_jax.models.flamingo import Flamingo, FlamingoConfig
from pin_jax.models.interface import Inserts
from pin_jax.models.language.llama import LlamaConfig
from pin_jax.models.language.mpt import MPTConfig
from pin_jax.models.language.opt import OPTConfig
from pin_jax.models.perceiver import PerceiverConfig
from pin_jax.models.qformer import QFormerConfig
from pin_jax.models.smolvlm import SmolVLM, SmolVLMConfig
from pin_jax.models.vit import CLIP_MEAN, CLIP_STD, ViTConfig, normalise
from pin_jax.runtime import files as written
from pin_jax.runtime import sharding
from pin_jax.weights import files, gguf, registry, tokenizers
from pin_jax.weights.configs import sizes
from pin_jax.weights.configs.entries import SIZE, known_names, part, pixel_statistics
from pin_jax.weights.convert import convert
from pin_jax.weights.digests import Digest
from pin_jax.weights.openflamingo import load as load_openflamingo
from pin_jax.weights.parameters import fill, flatten, identity, read_safetensors


@dataclasses.dataclass
class VLM:
    """A frozen VLM.

    Attributes:
      model: a Linen module with the interface of `pin_jax.models.interface`. params: its parameters, a nested dict.
      tokenizer: a transformers tokenizer, padding on the left.
      codec: how boxes are written. mean, std: of the pixels, float[3].
      identity: a hash of the weights; an insert belongs to one identity.
      names: the object names that a small VLM knows; empty for one with an open vocabulary.
      frame: what stands around prompt and answer.
      mesh: that the parameters stand on; None for one device.
      processor: a transformers image processor, where the weights came with one.
      lock: of the tokenizer, which two threads cannot use at a time.
    """

    model: nn.Module
    params: Any
    tokenizer: Any
    codec: BoxCodec
    mean: Sequence[float]
    std: Sequence[float]
    identity: str
    names: tuple[str, ...] = ()
    frame: Frame = Frame()
    mesh: Mesh | None = None
    processor: Any = None
    lock: Any = dataclasses.field(default_factory=threading.Lock, repr=False, compare=False)

    def __post_init__(self):
        model: Any = self.model  # its `apply` may return more than one thing
        self._encode = jax.jit(
            lambda params, images, inserts: model.apply(
                inserts.variables(params), self.pixels(images)[:, None], inserts, method="encode"
            )[:, 0]
        )

    def pixels(self, images: jax.Array) -> jax.Array:
        """uint8[B, H, W, 3] -> float32[B, H, W, 3], normalised."""
        return normalise(images, self.mean, self.std)

    def apply(
        self,
        params: Any,
        pixels: jax.Array,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        labels: jax.Array | None = None,
        inserts: Inserts = Inserts(),
    ) -> jax.Array:
        """Logits of texts, each about its images.

        Args:
          pixels: float[B, H, W, 3], normalised; float[B, I, H, W, 3] where a text has several images (Flamingo).
          input_ids: int[B, T]; its image tokens stand for the image.
          attention_mask: [B, T], 0 at pads and in holes.
          labels: int[B, L], for an encoder-decoder language model only.

        Returns:
          float32[B, T, V]; with labels float32[B, L, V].
        """
        inputs = pixels if pixels.ndim == 5 else pixels[:, None], input_ids, attention_mask, inserts
        logits: Any = self.model.apply(inserts.variables(params), *inputs, labels=labels)
        return logits

    def encode(self, images: np.ndarray, inserts: Inserts = Inserts(), dtype: Any = np.float32) -> np.ndarray:
        """Images uint8[B, H, W, 3] -> vision tokens float[B, N, D], on every process; of the frozen encoder, but for
        what a method puts into it. `dtype`: None leaves them in the encoder's own."""
        inserts = inserts if self.mesh is None else sharding.replicate(inserts, self.mesh)
        with sharding.on(self.mesh):
            found = self._encode(self.params, sharding.shard_rows(images, self.mesh), inserts)
            return sharding.fetch(found)[: len(images)].astype(found.dtype if dtype is None else dtype)

    @functools.cached_property
    def encoder_dtype(self) -> np.dtype:
        """Of the vision tokens, as the encoder computes them."""
        size = self.codec.image_size
        picture = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
        return np.dtype(jax.eval_shape(self._encode, self.params, picture, Inserts()).dtype)

    def encode_rows(self, images: np.ndarray, inserts: Inserts = Inserts()) -> np.ndarray:
        """As `encode`, of this process's rows of a batch alone: every process gives its own, and as many."""
        inserts = inserts if self.mesh is None else sharding.replicate(inserts, self.mesh)
        with sharding.on(self.mesh):
            found = self._encode(self.params, sharding.from_local_rows(images, self.mesh), inserts)
            return sharding.local_rows(found, self.mesh).astype(np.float32)

    def tokenize(self, texts: Sequence[str], length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Texts -> left-padded ids int32[R, T] and mask bool[R, T].

        Raises:
          UserError: a word that a small VLM does not know, or image places that no image fills.
        """
        with self.lock:
            rows = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        tokenizers.refuse_unknown_words(self.tokenizer, texts, rows)
        self.check_places(texts, rows)
        length = length or max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id
        ids = np.array([[pad] * (length - len(row)) + row[-length:] for row in rows], np.int32)
        return ids, np.arange(length)[None] >= length - np.array([len(row) for row in rows])[:, None]

    def check_places(self, texts: Sequence[str], rows: Sequence[Sequence[int]] | None = None) -> None:
        """Refuses texts whose image places are not those of an image, which would be ignored without a word.

        Args:
          rows: ids of each text, if they are known already.

        Raises:
          UserError: the tokenizer's `<image>` is not the model's image token, or there are too few places, or too many.
        """
        if rows is None:
            found: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
            rows = found
        image, places = self.model.config.image_token, self.frame.prefix.count(IMAGE)
        for text, row in zip(texts, rows, strict=True):
            asked, made = text.count(IMAGE), list(row).count(image)
            if asked != made:
                raise UserError(
                    f"text {text[-80:]!r}: {asked} places for the image, but the tokenizer makes {made} tokens"
                    f" of the model's image token {image}; give tokenizer and config of one model"
                )
            if places and made % places:
                raise UserError(
                    f"text {text[-80:]!r}: {made} places for images, but an image has {places}; leave out {IMAGE}"
                )

    def detokenize(self, tokens: np.ndarray) -> list[str]:
        """Written tokens int[R, T] -> texts, as they would go on from their prompts."""
        with self.lock:
            texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        # A text of its own loses its first space; an answer begins with one.
        return [f" {text.lstrip()}" for text in texts] if self.frame.encoder_decoder else texts

    @property
    def suppressed(self) -> tuple[int, ...]:
        """Tokens that are never written: `<image>` and padding."""
        return (self.model.config.image_token, self.model.config.pad_token)


def on_grid(vlm: VLM, grid: int) -> VLM:
    """The VLM with its boxes on another grid; 0 keeps its own.

    Raises:
      UserError: the grid does not divide the image, or a small VLM does not know its numbers.
    """
    if grid in (0, vlm.codec.grid):
        return vlm
    try:
        codec = BoxCodec(vlm.codec.image_size, grid)
    except ValueError as error:
        raise UserError(f"config.grid: {error}") from error
    vlm.tokenize([codec.encode(np.array([0, 0, i, i])) for i in range(grid)])
    return dataclasses.replace(vlm, codec=codec)


def skeleton(model: nn.Module, dtypes: Mapping[str, Any] | None = None) -> Any:
    """Shapes and dtypes of the parameters, without computing any.

    Args:
      dtypes: of the weights, by top-level part; float32 where there is none.
    """

    def everything(module, pixels, texts):
        return module.predict(module.encode(pixels), texts)

    def shapes(rng):
        size = model.config.vision.image_size
        ids = jnp.zeros((1, 1024), jnp.int32)  # longer than any image's share of a text
        texts = {"ids": ids, "labels": ids, "target": ids}
        return model.init(rng, jnp.zeros((1, 1, size, size, 3)), texts, method=everything)["params"]

    tree = jax.eval_shape(shapes, jax.random.key(0))
    return {
        name: jax.tree.map(lambda x, name=name: x.update(dtype=(dtypes or {}).get(name) or x.dtype), leaves)
        for name, leaves in tree.items()
    }


IMAGE = "<image>"  # a place of the image in a text, of every VLM here
# fields of a frame as folders written before 2026-11-26 name them
FORMER_FRAME = {"front": "prefix", "between": "separator", "tail": "suffix", "apart": "encoder_decoder"}
# model, its config, and the configs of its parts, by the kind that config.json names
KINDS = {
    "flamingo": (Flamingo, FlamingoConfig, {"vision": ViTConfig, "lm": MPTConfig, "perceiver": PerceiverConfig}),
    "blip2": (Blip2, Blip2Config, {"vision": ViTConfig, "lm": OPTConfig, "qformer": QFormerConfig}),
    "smolvlm": (SmolVLM, SmolVLMConfig, {"vision": ViTConfig, "lm": LlamaConfig}),
}


def save(folder: pathlib.Path, vlm: VLM, decoder: str = "") -> None:
    """Writes a small VLM's folder.

    Args:
      decoder: where its language model and tokenizer come from (`gguf.opened`); they are then not written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kind = next(name for name, (model, _, _) in KINDS.items() if isinstance(vlm.model, model))
    config = dataclasses.asdict(vlm.model.config)
    for name in KINDS[kind][2]:
        (config[name] or {}).pop("dtype", None)  # a choice of the run, not of the weights
    meta = {
        "kind": kind,
        "model": config,
        "image_mean": list(vlm.mean),
        "image_std": list(vlm.std),
        "grid": vlm.codec.grid,
        "frame": dataclasses.asdict(vlm.frame),
        "names": list(vlm.names),
    }
    params = vlm.params
    if decoder:
        meta["decoder"] = decoder
        params = {name: part for name, part in params.items() if name != "lm"}
    written.write_json(folder / "config.json", meta)
    written.write_bytes(folder / "model.safetensors", safetensors.save(flatten(params)))
    if not decoder:
        vlm.tokenizer.save_pretrained(folder)


def load(folder: str | pathlib.Path, dtype: Any = None) -> VLM:
    """Reads a small VLM's folder.

    Args:
      folder: written by `save`.
      dtype: of the computation (None: float32).

    Raises:
      UserError: the folder, or what is in it, is missing or broken.
    """
    folder = pathlib.Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"VLM folder {folder}: no config.json in it; give a folder such as assets/tiny_flamingo")
    meta, where = files.read_object(folder / "config.json"), str(folder / "config.json")
    model = _model(meta, dtype, where)
    config, size = model.config, model.config.vision.image_size
    grid: Any = meta.get("grid")
    if not SIZE.test(grid) or size % grid:
        raise UserError(f"{where}: grid is {grid!r}; expected a whole number that divides the image's side {size}")
    fields = {FORMER_FRAME.get(key, key): value for key, value in part(meta, "frame", where).items()}
    frame = sizes.check(sizes.build(Frame, fields, f"{where}, frame"), f"{where}, frame")
    mean, std = pixel_statistics(meta.get("image_mean"), meta.get("image_std"), (CLIP_MEAN, CLIP_STD), where)
    names = known_names(meta, where)
    decoder = meta.get("decoder")
    if decoder is None:
        tokenizer, tensors = _own_tokenizer(folder, config), {}
    elif isinstance(decoder, str) and isinstance(model, SmolVLM):
        file = gguf.opened(decoder)
        tokenizer = gguf.with_image(file)[1]
        _check_ids(tokenizer, folder, config)
        tensors = {f"lm/{name}": value for name, value in gguf.decoder(file, config.lm, where).items()}
    else:
        raise UserError(f"{where}: decoder is {decoder!r}; expected {gguf.SMOLLM2} or a GGUF file, of a smolvlm")
    with sizes.buildable(where):
        shapes = skeleton(model)
    params = fill(shapes, read_safetensors(folder / "model.safetensors") | tensors, str(folder))
    vlm = VLM(model, params, tokenizer, BoxCodec(size, grid), mean, std, identity(params), names, frame)
    vlm.check_places([frame.prefix])
    return vlm


def _model(meta: Mapping[str, Any], dtype: Any, where: str) -> nn.Module:
    """The module that a small VLM's config.json describes.

    Raises:
      UserError: an entry that is missing, unknown, of the wrong type, or that cannot be.
    """
    kind = meta.get("kind", "flamingo")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{where}: kind is {kind!r}; expected one of {', '.join(KINDS)}")
    make, whole, parts = KINDS[kind]
    fields = dict(part(meta, "model", where, required=True))
    for name, each in parts.items():
        optional = name == "perceiver"
        if fields.get(name) is not None or not optional:
            fields[name] = sizes.build(each, fields.get(name), f"{where}, model.{name}", dtype=dtype)
    return make(sizes.check(sizes.build(whole, fields, f"{where}, model"), where))


def _own_tokenizer(folder: pathlib.Path, config: Any) -> Any:
    """A small VLM's tokenizer, with the ids that its config has.

    Raises:
      UserError: missing, broken, or not that of the model.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = tokenizers.read(folder, config.lm.vocab, tokenizers.FAST, loader=PreTrainedTokenizerFast)
    _check_ids(tokenizer, folder, config)
    return tokenizer


def _check_ids(tokenizer: Any, folder: pathlib.Path, config: Any) -> None:
    """Refuses a tokenizer whose ids are not those of the config."""
    expected = {
        "image_token": ("<image>", config.image_token),
        "pad_token": (tokenizer.pad_token, config.pad_token),
        "end_token": (tokenizer.eos_token, config.end_token),
    }
    tokenizers.check_ids(tokenizer, folder, expected)


def load_vlm(
    source: str | pathlib.Path,
    dtype: Any = "float32",
    mesh: Mesh | None = None,
    rules: sharding.Rules = sharding.RULES,
    remat: str = "none",
    attention: str = "xla",
    grid: int = 0,
    **pieces: Any,
) -> tuple[VLM, Any]:
    """Reads a VLM: a small one of this project, or published weights in their own layout.

    Published tensors go one by one to where they belong on the mesh; host memory holds one shard file and one tensor.

    Args:
      source: a folder, or a Hugging Face hub id.
      dtype: of weights and computation: `float32`, `bfloat16`, `float16`; `published` for each part as its makers ran
        it, or a mapping from part to dtype. A small VLM's weights stay float32.
      mesh: from `sharding.make_mesh`; one device by default. rules: see `sharding.shardings`.
      remat: what the backward pass computes again, a key of `layers.REMAT`.
      attention: of the vision encoder, a key of `models.attention.ATTENTION`.
      grid: cells along a side of the image, of published VLMs' box text; 0: 16 as published, or the number next to it
        that divides the image.
      **pieces: of an OpenFlamingo, whose checkpoint `source` is: language_model, vision, and what else
        `weights.openflamingo.load.open_pieces` takes.

    Returns:
      The VLM and its parameters: vlm.apply(params, pixels, input_ids, attention_mask).

    Raises:
      UserError: nothing there, an unknown kind of model, weights that do not fit, or a mesh that does not divide them.
    """
    names = ("float32", "bfloat16", "float16", "published")
    if isinstance(dtype, str) and dtype not in names:
        raise UserError(f"config.dtype {dtype!r}: expected one of {', '.join(names)}")
    for name, value, known in (("remat", remat, layers.REMAT), ("attention", attention, ATTENTION)):
        if value not in known:
            raise UserError(f"config.{name} {value!r}: expected one of {', '.join(known)}")
    mesh = sharding.make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
    pieces = {name: piece for name, piece in pieces.items() if piece not in ("", None)}
    if pieces or str(source).endswith(".pt"):
        if "language_model" not in pieces:
            raise UserError(f"VLM {source}: an OpenFlamingo checkpoint; name its language model, language_model=FOLDER")
        found = load_openflamingo.open_pieces(source, dtype=dtype, remat=remat, attention=attention, **pieces)
        return _published(found, str(source), mesh, rules, grid)
    folder = files.resolve(source)
    reader = registry.reader(folder)
    if reader is None:
        if (remat, attention) != ("none", "xla"):
            raise UserError(f"config.remat {remat!r}, config.attention {attention!r}: of published models only")
        vlm = load(folder, None if dtype in ("float32", "published") else dtype)
        params = sharding.put(vlm.params, sharding.shardings(vlm.params, mesh, rules))
        vlm = dataclasses.replace(vlm, params=params, mesh=mesh)
        return vlm, params
    return _published(reader.read(folder, dtype, remat=remat, attention=attention), str(source), mesh, rules, grid)


def _codec(size: int, grid: int) -> BoxCodec:
    """Boxes on a grid of the image; see `load_vlm`.

    Raises:
      UserError: the grid does not divide the image.
    """
    try:
        return BoxCodec(size, grid or min((n for n in range(2, size + 1) if not size % n), key=lambda n: abs(n - 16)))
    except ValueError as error:
        raise UserError(f"grid: {error}") from error


def _published(found: registry.Published, source: str, mesh: Mesh, rules: sharding.Rules, grid: int) -> tuple[VLM, Any]:
    """Reads the weights of a published VLM onto a mesh."""
    codec = _codec(found.model.config.vision.image_size, grid)
    with sizes.buildable(found.source or source):
        shapes = skeleton(found.model, found.dtypes)
    digest = Digest(getattr(found.tensors, "files", ()))
    params = convert(
        found.tensors, found.table, shapes, found.source or source, sharding.shardings(shapes, mesh, rules), digest
    )
    digest.keep()
    vlm = VLM(
        found.model, params, found.tokenizer, codec, found.mean, found.std, digest.identity,
        frame=found.frame, mesh=mesh, processor=found.processor,
    )  # fmt: skip
    if vlm.tokenizer is not None:
        vlm.check_places([vlm.frame.prefix])
    return vlm, params
