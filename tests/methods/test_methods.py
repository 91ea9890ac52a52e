"""Every method on both families of VLM: gradients, what stays frozen, files, combinations, and what a step costs."""

from __future__ import annotations

import functools
import json
import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from input_pipeline.errors import UserError
from input_pipeline.text.box_codec import BoxCodec
from pin_jax import adapters, methods, train
from pin_jax import vlm as vlm_lib
from pin_jax.methods.combined import join
from pin_jax.methods.lora import merge
from pin_jax.models.blip2 import BLIP2_OPT_2_7B, Blip2, Blip2Config
from pin_jax.models.flamingo import FlamingoConfig
from pin_jax.models.interface import Inserts
from pin_jax.models.language.mpt import MPTConfig
from pin_jax.models.language.opt import OPTConfig
from pin_jax.models.perceiver import PerceiverConfig
from pin_jax.models.qformer import QFormerConfig
from pin_jax.models.vit import CLIP_L14, EVA_G14, ViT, ViTConfig
from pin_jax.runtime import flops
from pin_jax.vlm import VLM
from pin_jax.weights.parameters import count_parameters
from tests.fixtures import tiny
from tests.fixtures.tiny import random_params, skeleton

ALL = "pin+vpt_f+vpt_v+coop+lora_v"
SMALL = {
    "pin": {"hidden": (6, 5)}, "vpt_f": {"tokens": 3}, "vpt_v": {"tokens": 2}, "coop": {"tokens": 2},
    "lora_v": {"rank": 2},
}  # fmt: skip
FAMILIES = ("flamingo", "blip2")


@functools.cache
def family(name: str) -> VLM:
    """A tiny VLM without a tokenizer, every weight random."""
    if name == "flamingo":
        model, params = tiny.flamingo(1)
    else:
        vision = ViTConfig(image_size=28, patch=14, width=16, depth=2, heads=2, mlp=32, patch_bias=True, pre_norm=False)
        config = Blip2Config(
            vision, QFormerConfig(queries=3, width=16, depth=2, heads=2, mlp=32),
            OPTConfig(vocab=30, width=16, depth=1, heads=2, mlp=32, positions=64, act="gelu"),
            tiny.IMAGE, tiny.END, tiny.PAD,
        )  # fmt: skip
        model = Blip2(config)
        params = random_params(vlm_lib.skeleton(model))
    half = (0.5,) * 3
    return VLM(model, params, None, BoxCodec(28, 2), half, half, f"{name} weights")


def batch(vlm: VLM, images: int = 2, questions: int = 2) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    front = 1 if vlm is family("flamingo") else vlm.model.config.qformer.queries
    ids = rng.integers(0, tiny.IMAGE, (images, questions, front + 5))
    ids[..., :front] = tiny.IMAGE
    target = np.zeros(ids.shape, np.float32)
    target[..., -3:] = 1
    return {"ids": jnp.asarray(ids), "target": jnp.asarray(target),
            "image": jnp.asarray(rng.integers(0, 255, (images, 28, 28, 3)), jnp.uint8)}  # fmt: skip


def build(vlm: VLM, name: str):
    options = SMALL if "+" in name else SMALL[name]
    return methods.build(name, vlm.model.config, {k: options[k] for k in (name.split("+") if "+" in name else options)})


def moved(vlm: VLM, method):
    """Parameters with every weight random."""
    return random_params(methods.shapes(method, vlm.params), scale=0.2)


def loss(vlm: VLM, method, frozen, params, data):
    inserts = method.inserts(params)
    images = vlm.pixels(data["image"])[:, None]
    vision = vlm.model.apply(inserts.variables(frozen), images, inserts, method="encode")[:, 0]
    return train.box_loss(vlm.model, frozen, inserts, {**data, "vision": vision})


def unit(tree):
    """A tree of norm 1."""
    norm = optax.global_norm(tree)
    return jax.tree.map(lambda a: a / norm, tree)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_finite_differences(name):
    """Of all methods at once, in directions of one of them each."""
    vlm = family(name)
    method, data = build(vlm, ALL), batch(vlm)
    params = moved(vlm, method)
    rng = np.random.default_rng(1)
    noise = jax.tree.map(lambda a: rng.standard_normal(a.shape), params)
    with jax.enable_x64(True):
        params, frozen = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, vlm.params))
        value = jax.jit(jax.value_and_grad(lambda params: loss(vlm, method, frozen, params, data)))
        _, gradient = value(params)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
            assert np.abs(leaf).max() > 1e-7, path
        step = 1e-3  # logits are float32 by contract
        for part in params:
            direction = jax.tree.map(jnp.add, unit(gradient[part]), unit(noise[part]))
            ahead, behind = (
                value(params | {part: jax.tree.map(lambda a, b: a + sign * step * b, params[part], direction)})[0]  # noqa: B023
                for sign in (1, -1)
            )
            pairs = zip(jax.tree.leaves(gradient[part]), jax.tree.leaves(direction), strict=True)
            expected = sum(jnp.vdot(g, d) for g, d in pairs)
            assert abs(expected) > 1e-3, part
            np.testing.assert_allclose((ahead - behind) / (2 * step), expected, rtol=5e-3, atol=5e-4, err_msg=part)


def stepper(vlm: VLM, method, seed: int = 0):
    tx = train.optimiser(ml_collections.ConfigDict({"schedule": "constant", "lr": 1e-2, "steps": 3}))
    return train.make_step(vlm, method, tx, seed), train.initial(method, tx, 0, vlm.params)


@pytest.mark.parametrize("name", FAMILIES)
def test_training_moves_the_method_alone(name):
    vlm = family(name)
    before = jax.tree.map(lambda a: np.array(a).tobytes(), vlm.params)
    method, data = build(vlm, ALL), batch(vlm)
    step, state = stepper(vlm, method)
    start = jax.tree.map(np.array, state.trainable)
    losses = []
    for _ in range(4):
        state, metrics = step(state, vlm.params, data)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    assert jax.tree.map(lambda a: np.array(a).tobytes(), vlm.params) == before
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda a, b: a - b, start, state.trainable)):
        assert np.abs(leaf).max() > 0, path


def test_dropout_is_drawn_anew_in_every_step_and_from_the_seed():
    """With a learning rate of zero the parameters stay, so that only dropout can change the loss."""
    vlm = family("flamingo")
    method, data = build(vlm, "vpt_v"), batch(vlm)
    tx = train.optimiser(ml_collections.ConfigDict({"schedule": "constant", "lr": 0.0, "steps": 3}))

    def losses(seed):
        step, state = train.make_step(vlm, method, tx, seed), train.initial(method, tx, 0, vlm.params)
        out = []
        for _ in range(2):
            state, metrics = step(state, vlm.params, data)
            out.append(float(metrics["loss"]))
        return out

    one, other = losses(0), losses(1)
    assert len({*one, *other}) == 4 and losses(0) == one
    tokens = method.inserts(method.init(jax.random.key(0)), jax.random.key(1), 500).vision_input
    assert tokens.shape == (500, 2, 16)
    assert 0.08 < float((tokens == 0).mean()) < 0.12  # 16,000 values at a rate of 0.1
    np.testing.assert_allclose(tokens.mean(0), method.init(jax.random.key(0))["tokens"], atol=0.02)


@pytest.mark.parametrize(
    ("name", "part"), [*(("flamingo", part) for part in SMALL), ("blip2", "pin"), ("blip2", "lora_v")]
)
def test_only_methods_inside_the_encoder_pay_for_its_backward(name, part):
    vlm = family(name)
    method, data = build(vlm, part), batch(vlm)
    step, state = stepper(vlm, method)
    images = vlm.pixels(data["image"])[:, None]
    encode = functools.partial(vlm.model.apply, method="encode")
    forward = flops.count_flops(lambda p: encode({"params": p}, images), vlm.params)
    vision = jax.eval_shape(lambda: encode({"params": vlm.params}, images)[:, 0])
    cached = {k: v for k, v in data.items() if k != "image"} | {"vision": vision}
    inside = flops.count_flops(step, state, vlm.params, data)
    behind = flops.count_flops(step, state, vlm.params, cached)
    assert forward > 0
    if part in ("vpt_v", "lora_v"):
        assert train.in_vision(method, vlm.params)
        assert inside - behind > 1.8 * forward
    else:
        assert not train.in_vision(method, vlm.params)
        assert inside - behind == forward


@pytest.mark.parametrize("part", ("lora_v", ALL))
def test_files_give_the_same_outputs(part, tmp_path):
    vlm = family("flamingo")
    method, data = build(vlm, part), batch(vlm)
    params = moved(vlm, method)
    name, options = methods.describe(method)
    assert name == part
    config = ml_collections.ConfigDict({"method": name, "method_options": options, "vlm": "here"})
    adapters.save(tmp_path / "insert.safetensors", params, config, vlm)
    adapters.note(tmp_path / "insert.safetensors", {"mIoU": 0.5})
    card = json.loads((tmp_path / "insert.json").read_text())
    assert (
        card["method"] == part and card["parameters"] == count_parameters(params) and card["results"] == {"mIoU": 0.5}
    )
    again, loaded = adapters.load(tmp_path / "insert.safetensors", vlm)
    assert again == method
    inserts = adapters.load_adapter(tmp_path / "insert.safetensors", vlm)
    images, ids = vlm.pixels(data["image"]), data["ids"][:, 0]
    run = jax.jit(lambda frozen, inserts: vlm.apply(frozen, images, ids, inserts=inserts))
    with_them = run(vlm.params, method.inserts(params))
    np.testing.assert_array_equal(run(vlm.params, inserts), with_them)
    weights, rest = merge(vlm.params, inserts)
    np.testing.assert_allclose(run(weights, rest), with_them, rtol=1e-6, atol=2e-6)
    off = run(vlm.params, Inserts())
    assert np.abs(off - with_them).max() > 1e-3
    np.testing.assert_array_equal(run(vlm.params, Inserts()), off)
    with pytest.raises(UserError, match="trained on frozen weights flamingo weights, these are blip2 weights"):
        adapters.load(tmp_path / "insert.safetensors", family("blip2"))


@pytest.mark.parametrize("name", FAMILIES)
def test_an_insert_beside_tokens_stays_on_its_patches(name):
    """psi is added to the class token and the patches, not to what came out of VPT's tokens."""
    vlm = family(name)
    n, first = vlm.model.config.media_tokens, int(name == "blip2")
    both = Inserts(vision_input=jnp.ones((2, 16)), vision_output=jnp.arange(1.0, n + 1)[:, None] * jnp.ones(16))
    images = vlm.pixels(batch(vlm)["image"])[:, None]
    shape = jax.eval_shape(lambda: vlm.model.apply({"params": vlm.params}, images, both, method="encode")).shape
    assert shape[2] == n + 2
    vision = jnp.zeros(shape)
    added = np.asarray(both.after_vision(vision, first) - vision)[0, 0, :, 0]
    expected = np.insert(np.arange(1.0, n + 1), first, [0, 0])
    np.testing.assert_allclose(added, expected, atol=1e-5)


OPENFLAMINGO_3B = FlamingoConfig(
    CLIP_L14, MPTConfig(vocab=50281, width=2048, depth=24, heads=16), PerceiverConfig(), 1, 50278, 50277, 50280
)


@pytest.mark.parametrize(
    ("config", "tower", "expected"),
    [
        (OPENFLAMINGO_3B, CLIP_L14, {"pin": 1_217_280, "vpt_f": 20 * 1024, "vpt_v": 20 * 1024, "coop": 20 * 2048,
                                     "lora_v": 24 * 8 * (4 + 2 + 5 + 5) * 1024}),
        (BLIP2_OPT_2_7B, EVA_G14, {"pin": 1_512_576, "vpt_f": 20 * 1408, "vpt_v": 20 * 1408, "coop": 20 * 2560,
                                   "lora_v": 39 * 8 * (4 * 1408 + 2 * 1408 + 2 * (1408 + 6144))}),
    ],
)  # fmt: skip
def test_published_parameter_counts(config, tower, expected):
    frozen = {"vision": skeleton(ViT(tower), jnp.zeros((1, 224, 224, 3)))}
    for name, wanted in expected.items():
        assert count_parameters(methods.shapes(methods.build(name, config), frozen)) == wanted, name


def test_vpt_starts_uniform():
    values = np.asarray(methods.build("vpt_v", OPENFLAMINGO_3B).init(jax.random.key(0))["tokens"])
    bound = math.sqrt(6 / (3 * 14 * 14 + 1024))
    assert 0.99 * bound < np.abs(values).max() <= bound and abs(values.std() / (bound / math.sqrt(3)) - 1) < 0.05


def test_joining():
    tokens = Inserts(text=jnp.ones((2, 4)))
    own = Inserts(text=jnp.zeros((3, 1, 4)), vision_output=jnp.ones((5, 4)))
    both = join(join(tokens, own), Inserts(vision_output=jnp.ones((5, 4))))
    assert both.text.shape == (3, 3, 4) and float(both.text[0, 2, 0]) == 0 and float(both.text[0, 1, 0]) == 1
    np.testing.assert_array_equal(both.vision_output, 2 * np.ones((5, 4)))
    low = {"vision": {"blocks": {"qkv": {"a": 1, "b": 2}}}}
    other = {"vision": {"blocks": {"out": {"a": 3, "b": 4}}}, "lm": {"head": {"a": 5, "b": 6}}}
    joined = join(Inserts(lora=low), Inserts(lora=other)).lora
    assert set(joined["vision"]["blocks"]) == {"qkv", "out"} and "lm" in joined
    with pytest.raises(UserError, match="low-rank branch at vision/blocks/qkv"):
        join(Inserts(lora=low), Inserts(lora=low))


OWN = """
import dataclasses
from typing import Any
import jax.numpy as jnp
from pin_jax.models.interface import Inserts

@dataclasses.dataclass(frozen=True)
class Shift:
    config: Any
    start: float = 0.0

    def init(self, rng, frozen=None):
        return {"shift": jnp.full((self.config.vision.width,), self.start)}

    def inserts(self, params, rng=None, images=1):
        return Inserts(vision_output=jnp.tile(params["shift"], (self.config.media_tokens, 1)))
"""


def test_a_method_of_ones_own_in_one_file(tmp_path, monkeypatch):
    (tmp_path / "shifting.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    assert methods.defaults("shifting:Shift") == {"start": 0.0}
    vlm = family("flamingo")
    method = methods.build("shifting:Shift", vlm.model.config, {"start": 0.5})
    assert methods.describe(method) == ("shifting:Shift", {"start": 0.5})
    assert not train.in_vision(method, vlm.params)
    assert set(methods.defaults("shifting:Shift+lora_v")) == {"Shift", "lora_v"}
    found = method.inserts(method.init(jax.random.key(0)))
    np.testing.assert_array_equal(found.vision_output, np.full((4, 16), 0.5))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("lora", {}, ["'lora'", "did you mean lora_v?"]),
        ("pin+pin", {}, ["the same method twice"]),
        ("vpt_v", {"hidden": 3}, ["no option 'hidden'", "tokens, dropout", "--config=FILE:method=vpt_v"]),
        ("pin+coop", {"hidden": 3}, ["no option 'hidden'", "pin, coop"]),
        ("lora_v", {"rank": 0}, ["rank 0", "from 1 on"]),
        ("lora_v", {"dropout": 1.0}, ["dropout 1.0", "below 1"]),
        ("vpt_f", {"tokens": 0}, ["0 tokens", "at least one"]),
        ("pin", {"hidden": (512, -1)}, ["(512, -1)", "from 1 on"]),
        ("nowhere:Shift", {}, ["cannot be imported", "module:Class"]),
    ],
)
def test_errors_name_what_is_expected(name, options, words):
    with pytest.raises(UserError) as error:
        methods.build(name, family("flamingo").model.config, options)
    for word in words:
        assert word in str(error.value)
