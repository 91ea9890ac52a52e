"""BLIP-2 with OPT and with T5 against transformers, on checkpoints that transformers itself saved."""

from __future__ import annotations

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from input_pipeline.errors import UserError
from pin_jax.decoding import search
from pin_jax.models.blip2 import Blip2, Blip2Config
from pin_jax.models.interface import Inserts
from pin_jax.vlm import skeleton
from pin_jax.weights import convert as converter
from pin_jax.weights.blip2 import BY_ID, config_of, table
from pin_jax.weights.published import BLIP2
from tests.fixtures.golden_files import GOLDEN, split_weights
from tests.fixtures.tiny import run

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
NAMES = ("blip2_opt", "blip2_t5")
END = {"blip2_opt": 45, "blip2_t5": 8}


@dataclasses.dataclass
class Reference:
    """One golden file: our model on its weights, its inputs ready to use, and its outputs."""

    name: str
    model: Blip2
    params: dict
    arrays: dict

    @property
    def ids(self) -> jax.Array:
        return jnp.asarray(self.arrays["in/input_ids"])

    @property
    def mask(self) -> jax.Array:
        return jnp.asarray(self.arrays["in/attention_mask"])

    @property
    def labels(self) -> np.ndarray:
        return self.arrays["in/labels"]

    @property
    def encoder_decoder(self) -> bool:
        return self.name == "blip2_t5"

    def pixels(self, key: str = "in/pixels") -> jax.Array:
        return jnp.asarray(self.arrays[key].transpose(0, 2, 3, 1)[:, None])

    def outputs(self, model: Blip2) -> dict[str, jax.Array]:
        """Everything that the golden file has numbers for, in one compiled function."""
        labels = jnp.asarray(self.labels)
        extra = {"labels": labels} if self.encoder_decoder else {}

        def logits(params, pixels, inserts=Inserts()):
            return model.apply({"params": params}, pixels, self.ids, self.mask, inserts, **extra)

        def loss(insert, params, pixels):
            out = logits(params, pixels, Inserts(vision_output=insert))
            used, wanted = (out, labels) if self.encoder_decoder else (out[:, :-1], labels[:, 1:])
            cost = optax.softmax_cross_entropy_with_integer_labels(used, jnp.maximum(wanted, 0))
            return (cost * (wanted >= 0)).sum() / (wanted >= 0).sum(), out

        @jax.jit
        def everything(params, pixels, larger, insert):
            encode = functools.partial(model.apply, {"params": params}, method="encode")
            (value, inserted), gradient = jax.value_and_grad(loss, has_aux=True)(insert, params, pixels)
            vision = encode(pixels)[:, 0]
            return {
                "vision": vision,
                "larger_vision": encode(larger)[:, 0],
                "queries": model.apply({"params": params}, vision, method=lambda m, x: m.qformer(x)),
                "insert_logits": inserted,
                "loss": value,
                "insert_gradient": gradient,
            }

        return everything(self.params, self.pixels(), self.pixels("in/larger"), jnp.asarray(self.arrays["in/insert"]))

    def seen(self) -> np.ndarray:
        """Where logits mean something."""
        return (
            np.ones(self.labels.shape, bool) if self.encoder_decoder else self.arrays["in/attention_mask"].astype(bool)
        )


def build(name, weights, arrays) -> Reference:
    config = config_of(json.loads(str(arrays["config"])))
    config = dataclasses.replace(config, end_token=END[name])
    model = Blip2(config)
    params = converter.convert(weights, table(config), skeleton(model))
    return Reference(name, model, jax.device_put(params), arrays)


@pytest.fixture(scope="module", params=NAMES)
def reference(request, golden):
    return build(request.param, *golden(request.param))


def compare_everything(reference: Reference, model: Blip2 | None = None):
    for key, ours in reference.outputs(model or reference.model).items():
        ours, theirs = np.asarray(ours), reference.arrays[f"out/{key}"]
        if key.endswith("logits"):
            ours, theirs = ours[reference.seen()], theirs[reference.seen()]
        np.testing.assert_allclose(ours, theirs, **TOLERANCE, err_msg=key)
    assert np.abs(reference.arrays["out/insert_gradient"]).max() > 1e-3


def test_golden(reference):
    compare_everything(reference)


def only(name: str):
    """Where both language models would go through the same code, one of them does."""
    return pytest.mark.parametrize("reference", [name], indirect=True)


@pytest.mark.torch
@pytest.mark.parametrize("name", NAMES)
def test_live_torch(name):
    from tests.fixtures.golden.make_blip2 import reference

    live = build(name, *split_weights(reference(name, seed=7)))
    compare_everything(live)
    compare_texts(live)


def until_end(row, end) -> list[int]:
    row = [int(t) for t in row]
    return row[: row.index(end) + 1] if end in row else row


def compare_texts(reference: Reference):
    """Greedy and beam search; after the end token transformers fills up with what it has at hand."""
    model, params, end = reference.model, reference.params, END[reference.name]
    vision = run(model, "encode")(params, reference.pixels())
    skip = 1 if reference.encoder_decoder else reference.ids.shape[1]
    common = (model, params, vision, reference.ids, reference.mask, Inserts(), 6)
    found = {"greedy": search.greedy(*common)}
    for penalty in (-1, 1):
        found[f"beams{penalty}"] = search.beam(*common, beams=3, length_penalty=float(penalty))
    for key, ours in found.items():
        theirs = reference.arrays[f"out/{key}"][:, skip:]
        assert [until_end(r, end) for r in np.asarray(ours)] == [until_end(r, end) for r in theirs], key


def test_greedy_and_beams(reference):
    compare_texts(reference)
    lengths = {len(until_end(r, END[reference.name])) for r in reference.arrays["out/greedy"]}
    assert len(lengths) > 1  # some texts end early


def test_cache_against_whole_texts(reference):
    model, params = reference.model, reference.params
    vision = run(model, "encode")(params, reference.pixels())
    tokens = jnp.asarray(np.random.default_rng(0).integers(3, 40, (3, 4)))
    if reference.encoder_decoder:
        labels = jnp.pad(tokens, [(0, 0), (0, 1)])
        whole = run(model)(params, None, reference.ids, reference.mask, vision=vision, labels=labels)
    else:
        ids, mask = jnp.concatenate([reference.ids, tokens], 1), jnp.pad(
            reference.mask, [(0, 0), (0, 4)], constant_values=1
        )  # fmt: skip
        whole = run(model)(params, None, ids, mask, vision=vision)[:, reference.ids.shape[1] - 1 :]
    logits, cache = run(model, "prefill")(params, vision, reference.ids, reference.mask, steps=4)
    for i in range(5):
        np.testing.assert_allclose(logits, whole[:, i], **TOLERANCE)
        if i < 4:
            logits, cache = run(model, "step")(params, cache, tokens[:, i])


def test_several_tokens_at_once(reference):
    """A start read with the prompt and steps of different lengths for each row, against a token at a time."""
    model, params = reference.model, reference.params
    vision = jnp.asarray(reference.arrays["out/vision"])[:, None]
    rows, start, texts = len(reference.ids), (9, 12), np.array([[20, 21, 22, 23], [30, 31, 32, 33]])
    texts = np.tile(texts, (rows // 2 + 1, 1))[:rows]
    logits, cache = run(model, "prefill")(params, vision, reference.ids, reference.mask, steps=6)
    whole = []
    for token in [*np.tile(start, (rows, 1)).T, *texts.T]:
        logits, cache = run(model, "step")(params, cache, jnp.asarray(token))
        whole.append(np.asarray(logits))
    whole = np.stack(whole, 1)[:, 1:]  # after the start, and after each token
    prompt = params, vision, reference.ids, reference.mask
    logits, cache = run(model, "prefill")(*prompt, steps=8, start=start, ragged=True)
    np.testing.assert_allclose(logits, whole[:, 0], **TOLERANCE)
    done = np.zeros(rows, int)
    for lengths in (np.arange(rows) % 2 * 2 + 1, np.arange(rows) % 2 * -2 + 3):  # 1, 3, ... then 3, 1, ...
        tokens = np.array([[*text[i : i + n], *[5] * (3 - n)] for text, i, n in zip(texts, done, lengths, strict=True)])
        logits, cache = run(model, "step")(params, cache, jnp.asarray(tokens), jnp.asarray(lengths))
        done += lengths
        np.testing.assert_allclose(logits, whole[np.arange(rows), done], **TOLERANCE)


@only("blip2_t5")
def test_rows_share_their_image(reference):
    """Two questions of each image at once are those questions one by one."""
    arrays = reference.arrays
    ids = jnp.repeat(reference.ids, 2, 0).at[1::2, -6].set(30)
    mask, labels = jnp.repeat(reference.mask, 2, 0), jnp.repeat(jnp.asarray(arrays["in/labels"]), 2, 0)
    labels = {"labels": labels} if reference.encoder_decoder else {}
    vision = run(reference.model, "encode")(reference.params, reference.pixels())
    together = run(reference.model)(reference.params, None, ids, mask, vision=vision, **labels)
    alone = run(reference.model)(reference.params, None, ids, mask, vision=jnp.repeat(vision, 2, 0), **labels)
    np.testing.assert_allclose(together, alone, **TOLERANCE)


def test_predict(reference):
    """Logits, labels and weights of the loss are those of the whole texts."""
    labels, skip = jnp.asarray(reference.labels), 0 if reference.encoder_decoder else 1
    texts = {"ids": reference.ids, "target": jnp.asarray(labels >= 0, jnp.float32)}
    texts |= {"labels": jnp.maximum(labels, 0)} if reference.encoder_decoder else {}
    vision = jnp.asarray(reference.arrays["out/vision"])[:, None]
    logits, wanted, weights = run(reference.model, "predict")(reference.params, vision, texts)
    used, expected = np.asarray(weights) > 0, reference.arrays["out/logits"][:, : labels.shape[1] - skip]
    assert used.sum() == (reference.labels[:, skip:] >= 0).sum()
    expected = expected[:, -logits.shape[1] :]
    np.testing.assert_allclose(np.asarray(logits)[used], expected[used], **TOLERANCE)
    np.testing.assert_array_equal(np.asarray(wanted)[used], reference.labels[reference.labels >= 0])


@only("blip2_opt")
def test_unroll_and_remat_change_nothing(reference):
    config = reference.model.config
    fields = {"vision": {"remat": "full"}, "qformer": {"remat": "dots"}, "lm": {"remat": "full", "unroll": True}}
    parts = {part: dataclasses.replace(getattr(config, part), **values) for part, values in fields.items()}
    compare_everything(reference, Blip2(dataclasses.replace(config, **parts)))


@only("blip2_opt")
def test_inserts_elsewhere(reference):
    model, params = reference.model, reference.params
    rng = np.random.default_rng(1)
    extra = jnp.asarray(rng.standard_normal((2, 32)), jnp.float32)
    vision = run(model, "encode")(params, reference.pixels())
    fused = run(model, "fuse")(params, vision, Inserts(fusion_input=extra))
    together = jnp.concatenate([vision, jnp.broadcast_to(extra, (3, 1, 2, 32))], 2)
    np.testing.assert_allclose(fused, run(model, "fuse")(params, together), **TOLERANCE)
    encode = functools.partial(run(model, "encode"), params, reference.pixels())
    assert jax.eval_shape(encode, Inserts(vision_input=extra)).shape == (3, 1, 19, 32)
    front = params["lm"]["embedding"][jnp.asarray([4, 3])]
    ids = jnp.concatenate([jnp.broadcast_to(jnp.asarray([4, 3]), (3, 2)), reference.ids], 1)
    mask = jnp.pad(reference.mask, [(0, 0), (2, 0)], constant_values=1)
    labels = {"labels": jnp.asarray(reference.labels)} if reference.encoder_decoder else {}
    longer = run(model)(params, None, ids, mask, vision=vision, **labels)
    inserted = run(model)(params, None, reference.ids, reference.mask, Inserts(text=front), vision, **labels)
    np.testing.assert_allclose(inserted, longer if reference.encoder_decoder else longer[:, 2:], **TOLERANCE)


@only("blip2_t5")
def test_bfloat16_stays_close(reference):
    config = reference.model.config
    parts = {p: dataclasses.replace(getattr(config, p), dtype="bfloat16") for p in ("vision", "qformer", "lm")}
    half = Blip2(dataclasses.replace(config, **parts))
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), reference.params)
    labels = {"labels": jnp.asarray(reference.labels)} if reference.encoder_decoder else {}
    out = run(half)(params, reference.pixels(), reference.ids, reference.mask, **labels)
    assert out.dtype == jnp.float32
    seen, expected = reference.seen(), reference.arrays["out/logits"]
    np.testing.assert_allclose(np.asarray(out)[seen], expected[seen], atol=0.1 * np.abs(expected).max())


def fits(names: dict[str, list[int]], config: Blip2Config, monkeypatch) -> None:
    """Every tensor finds its place and every place its tensor, by shapes alone: nothing is allocated."""

    class Shapes(dict):
        def __getitem__(self, key):
            return np.broadcast_to(np.zeros((), np.float32), super().__getitem__(key))

    def take(self, array, layer, part, parts):
        self.layered, self.parts = layer is not None, parts

    monkeypatch.setattr(converter._Filled, "fill", take)
    converter.convert(Shapes(names), table(config), skeleton(Blip2(config)))


COUNTS = {model.id: model.parameters for model in BLIP2.values()}


@pytest.mark.parametrize("name", COUNTS)
def test_published_models(name, monkeypatch):
    config, names = BY_ID[name], json.loads((GOLDEN / "blip2_names.json").read_text())[name]
    assert sum(leaf.size for leaf in jax.tree.leaves(skeleton(Blip2(config)))) == COUNTS[name]
    assert sum(math.prod(shape) for shape in names.values()) == COUNTS[name]
    assert config.media_tokens == 257 and config.vision.width == 1408
    fits(names, config, monkeypatch)
    with pytest.raises(UserError, match="qformer/queries"):
        fits({k: v for k, v in names.items() if k != "query_tokens"}, config, monkeypatch)


@pytest.mark.torch
@pytest.mark.parametrize("name", COUNTS)
def test_published_names_of_live_transformers(name):
    from tests.fixtures.golden.make_blip2 import published

    assert published(name) == json.loads((GOLDEN / "blip2_names.json").read_text())[name]
