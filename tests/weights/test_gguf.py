"""Language models in GGUF files: as transformers reads them, and what is wrong with one is a line.

The files are written by llama.cpp's own package (`pip install gguf torch accelerate`).
"""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.errors import UserError
from pin_jax.weights import gguf as reader
from tests.fixtures import published

pytestmark = pytest.mark.torch
DEPTH, WIDTH, HEADS, KEYS, MLP = 2, 64, 4, 2, 96


def shapes(tokens: int, tied: bool) -> dict[str, tuple[int, ...]]:
    keys = WIDTH // HEADS * KEYS
    out = {"token_embd.weight": (tokens, WIDTH), "output_norm.weight": (WIDTH,)}
    if not tied:
        out["output.weight"] = (tokens, WIDTH)
    for k in range(DEPTH):
        own = {
            "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "attn_q": (WIDTH, WIDTH), "attn_k": (keys, WIDTH),
            "attn_v": (keys, WIDTH), "attn_output": (WIDTH, WIDTH), "ffn_gate": (MLP, WIDTH), "ffn_up": (MLP, WIDTH),
            "ffn_down": (WIDTH, MLP),
        }  # fmt: skip
        out |= {f"blk.{k}.{name}.weight": shape for name, shape in own.items()}
    return out


def write(folder, tied=True, kind="llama", tokenizer=("gpt2", "smollm"), extra=None, without=""):
    """A file as llama.cpp's converter writes SmolLM2's, tiny, quantised to Q8_0."""
    import gguf

    tokens = published.smollm2(folder, image_token=False)
    held = json.loads((folder / "tokenizer.json").read_text())["model"]
    vocabulary = sorted(held["vocab"], key=held["vocab"].get)
    path = folder / "model.gguf"
    out = gguf.GGUFWriter(path, kind)
    out.add_block_count(DEPTH)
    out.add_context_length(256)
    out.add_embedding_length(WIDTH)
    out.add_feed_forward_length(MLP)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KEYS)
    out.add_rope_freq_base(100000.0)
    out.add_rope_dimension_count(WIDTH // HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_vocab_size(tokens)
    out.add_tokenizer_model(tokenizer[0])
    out.add_tokenizer_pre(tokenizer[1])
    out.add_token_list(vocabulary)
    out.add_token_types([3 if token.startswith("<|") else 1 for token in vocabulary])
    out.add_token_merges([" ".join(pair) for pair in held["merges"]])
    for name, value in (("bos", 1), ("eos", 2), ("unk", 0), ("pad", 2)):
        getattr(out, f"add_{name}_token_id")(value)
    if extra:
        out.add_float32(extra, 2.0)
    rng = np.random.default_rng(0)
    for name, shape in shapes(tokens, tied).items():
        if name == without:
            continue
        array = (rng.standard_normal(shape) * 0.2 + ("norm" in name)).astype(np.float32)
        if array.ndim == 2:
            kind_of = gguf.GGMLQuantizationType.Q8_0
            out.add_tensor(name, gguf.quantize(array, kind_of), raw_dtype=kind_of)
        else:
            out.add_tensor(name, array)
    if extra == "tensor":
        out.add_tensor("blk.0.attn_q.bias", np.zeros(WIDTH, np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_it_is_what_transformers_reads(tmp_path, tied):
    import torch
    import transformers

    path = write(tmp_path, tied)
    model, params, tokenizer = reader.load(path)
    assert model.config.tied == tied
    _, separate, _ = reader.load(path, apart=True)
    assert len(separate["blocks"]) == DEPTH
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    ids = np.array([tokenizer("In the image is a cat located at [12,345]")["input_ids"]], np.int32)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(ids).long()).logits.numpy()
    with jax.default_matmul_precision("highest"):
        x = model.apply({"params": params}, jnp.asarray(ids), method="embed")
        for own in (params, separate):
            found = model.apply({"params": own}, x, jnp.ones(ids.shape, bool))
            np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
    again = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    text = "<|im_start|>user\nWhere is 12,345?<|im_end|>\n"
    assert tokenizer(text)["input_ids"] == again(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "gemma"}, "general.architecture is 'gemma'; expected llama"),
        ({"extra": "llama.rope.scaling.factor"}, "llama.rope.scaling.factor is 2.0, which is not computed here"),
        ({"without": "blk.1.ffn_up.weight"}, "blocks/up"),
        ({"tokenizer": ("llama", "default")}, "tokenizer 'llama' with 'default' before it"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(tmp_path, options, said):
    path = write(tmp_path, **options)
    with pytest.raises(UserError, match=said):
        reader.load(path)


def test_a_file_that_is_cut_is_a_line(tmp_path):
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="not an intact GGUF file"):
        reader.load(path)
    with pytest.raises(UserError, match="no such file"):
        reader.load(tmp_path / "gone.gguf")
