"""Every attention function against its equation written out, and the second stream against the blocks done by hand."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gem_jax import attention, heatmaps
from gem_jax.attention import ATTENTION_METHODS, WITH_PROXY, method
from input_pipeline.errors import UserError
from pin_jax.models.attention import plain as plain_attention
from pin_jax.models.vit import AttentionContext, SecondStream, Streams, ViT, ViTBlock, ViTConfig
from tests.fixtures.tiny import random_params, skeleton

B, H, D, GRID = 2, 2, 4, (2, 3)
N = 1 + GRID[0] * GRID[1]
RNG = np.random.default_rng(0)
Q, K, V = (RNG.standard_normal((B, N, H, D)) for _ in range(3))
Y = RNG.standard_normal((B, N, H * D))
CONTEXT = AttentionContext(jnp.asarray(Y, jnp.float32), GRID, 1)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def heads(function) -> np.ndarray:
    """Applies a function of q, k, v float[N, d] and the image's index to every head."""
    out = np.zeros((B, N, H, D))
    for b in range(B):
        for h in range(H):
            out[b, :, h] = function(Q[b, :, h], K[b, :, h], V[b, :, h], b)
    return out


def gem_by_hand(q, k, v, b, iterations=1, temperature=None, parts="qkv"):
    """GEM's five steps, for one head."""
    beta = D**-0.5 * np.linalg.norm(Y[b], axis=-1).mean() if temperature is None else temperature
    outs = []
    for part in parts:
        s = {"q": q, "k": k, "v": v}[part]
        for _ in range(iterations):
            s = s / np.linalg.norm(s, axis=-1, keepdims=True)
            s = softmax(beta * s @ s.T) @ s
        s = s / np.linalg.norm(s, axis=-1, keepdims=True)
        outs.append(softmax(beta * s @ s.T) @ v)
    return np.mean(outs, 0)


def gaussian(log: bool = False) -> np.ndarray:
    w = np.zeros((N, N))
    for i in range(N - 1):
        for j in range(N - 1):
            p, r = divmod(i, GRID[1]), divmod(j, GRID[1])
            power = -((p[0] - r[0]) ** 2 + (p[1] - r[1]) ** 2) / 50
            w[1 + i, 1 + j] = power if log else np.exp(power)
    return w


EQUATIONS = {
    "clip": lambda q, k, v, b: softmax(q @ k.T / 2) @ v,
    "maskclip": lambda q, k, v, b: v,
    "clip_surgery": lambda q, k, v, b: softmax(v @ v.T / 2) @ v,
    "sclip": lambda q, k, v, b: (softmax(q @ q.T / 2) + softmax(k @ k.T / 2)) @ v,
    "clearclip": lambda q, k, v, b: softmax(q @ q.T / 2) @ v,
    "naclip": lambda q, k, v, b: softmax(k @ k.T / 2 + gaussian()) @ v,
    "naclip_log": lambda q, k, v, b: softmax(k @ k.T / 2 + gaussian(log=True)) @ v,
    "gem": gem_by_hand,
}


def run(attend) -> np.ndarray:
    return np.asarray(attend(*(jnp.asarray(x, jnp.float32) for x in (Q, K, V)), context=CONTEXT))


@pytest.mark.parametrize("name", [name for name in ATTENTION_METHODS if name not in WITH_PROXY])
def test_equation(name):
    np.testing.assert_allclose(run(ATTENTION_METHODS[name].attend), heads(EQUATIONS[name]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"iterations": 0}, {"iterations": 3}, {"temperature": 40.0}, {"parts": "k"}, {"parts": "vq"}]
)
def test_gem_settings(options):
    out = run(functools.partial(attention.gem, **options))
    np.testing.assert_allclose(out, heads(functools.partial(gem_by_hand, **options)), rtol=1e-5, atol=1e-5)


VISION = ViTConfig(image_size=12, patch=4, width=8, depth=4, heads=2, mlp=16)


@pytest.fixture(scope="module")
def tower():
    """(pixels, parameters, the function of one block by index)."""
    pixels = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    params = random_params(skeleton(ViT(VISION), pixels))

    def block(i: int, x, *args, **kwargs):
        own = jax.tree.map(lambda leaf: leaf[i], params["blocks"])
        return ViTBlock(VISION).apply({"params": own}, Streams(x), *args, **kwargs).tokens

    return pixels, params, block


@pytest.mark.parametrize("grid", [GRID, (5, 4)], ids=str)
def test_proxyclip_equation(grid):
    features = np.random.default_rng(3).standard_normal((B, grid[0] * grid[1], 7)) + 0.5
    rows, columns = (heatmaps.bilinear(n, m) for n, m in zip(GRID, grid, strict=True))
    expected = np.zeros((B, len(features[0]), H, D))
    for b in range(B):
        f = features[b] / np.linalg.norm(features[b], axis=-1, keepdims=True)
        a = (f @ f.T - 1.2 * (f @ f.T).mean()) * 3
        weights = softmax(np.where(a < 0, -np.inf, a))
        for h in range(H):
            v = V[b, 1:, h].reshape(*GRID, D)
            v = np.einsum("yr,xc,rcd->yxd", rows, columns, v).reshape(-1, D)
            expected[b, :, h] = weights @ v
    with jax.enable_x64():
        context = AttentionContext(jnp.asarray(Y), GRID, 1)
        out = attention.proxyclip(
            *map(jnp.asarray, (Q, K, V)), context, features=jnp.asarray(features), grid=grid
        )  # fmt: skip
        np.testing.assert_allclose(np.asarray(out), expected, rtol=1e-9, atol=1e-9)


def joined(owners: np.ndarray, f: np.ndarray, least: float) -> np.ndarray:
    """The number of each place's region after merging, by hand: pairs are joined until nothing changes."""
    means = {r: f[owners == r].sum(0) for r in set(owners.tolist())}
    means = {r: mean / np.linalg.norm(mean) for r, mean in means.items()}
    name = {r: r for r in means}
    for _ in name:
        for r in name:
            for t in name:
                if means[r] @ means[t] >= least:
                    name[r] = name[t] = min(name[r], name[t])
    return np.array([name[r] for r in owners.tolist()])


@pytest.mark.parametrize("merge", [0.3, 0.75, 2.0])
@pytest.mark.parametrize("grid", [GRID, (5, 4)], ids=str)
def test_corrclip_equation(grid, merge):
    rng = np.random.default_rng(4)
    count = grid[0] * grid[1]
    features = rng.standard_normal((B, count, 3))
    owners = rng.integers(0, 5, (B, count))
    rows, columns = (heatmaps.bilinear(n, m) for n, m in zip(GRID, grid, strict=True))
    expected, regions = np.zeros((B, count, H, D)), []
    for b in range(B):
        f = features[b] / np.linalg.norm(features[b], axis=-1, keepdims=True)
        names = joined(owners[b], f, merge)
        regions.append(len(set(owners[b].tolist())) - len(set(names.tolist())))
        weights = softmax(np.where(names[:, None] == names, (f @ f.T) / 0.25, -np.inf))
        for h in range(H):
            v = V[b, 1:, h].reshape(*GRID, D)
            expected[b, :, h] = weights @ np.einsum("yr,xc,rcd->yxd", rows, columns, v).reshape(-1, D)
    assert sum(regions) > 0 if merge == 0.3 else merge == 0.75 or not sum(regions)  # how many are gone
    with jax.enable_x64():
        out = attention.corrclip(
            *map(jnp.asarray, (Q, K, V)), AttentionContext(jnp.asarray(Y), GRID, 1), features=jnp.asarray(features),
            grid=grid, regions=jnp.asarray(owners), count=8, merge=merge,
        )  # fmt: skip
        np.testing.assert_allclose(np.asarray(out), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("mlp", [True, False])
def test_second_stream_by_hand(tower, residual, mlp):
    pixels, params, _ = tower
    stream = SecondStream(attention.clip_surgery, 2, residual, mlp)
    both = ViT(VISION).apply({"params": params}, pixels, stream)
    z, x = both.second, both.tokens
    plain = ViT(VISION).apply({"params": params}, pixels).tokens
    np.testing.assert_allclose(x, plain, rtol=1e-5, atol=1e-5)

    bare = dataclasses.replace(VISION, post_norm=False)  # a tower of the first two blocks, and then by hand
    without = {key: value for key, value in params.items() if key != "post_norm"}
    first = {**without, "blocks": jax.tree.map(lambda leaf: leaf[:2], params["blocks"])}
    x = np.asarray(ViT(dataclasses.replace(bare, depth=2)).apply({"params": first}, pixels).tokens, np.float64)
    own = x

    def norm(x, p):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + VISION.eps) * p["scale"] + p["bias"]

    for i in (2, 3):
        p = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i], np.float64), params["blocks"])
        q, k, v = np.split(norm(x, p["norm_1"]) @ p["qkv"]["kernel"] + p["qkv"]["bias"], 3, -1)

        def attended(one, q=q, k=k, v=v, p=p):
            out = np.zeros_like(v)
            for b in range(2):
                for h in (slice(0, 4), slice(4, 8)):
                    out[b, :, h] = one(q[b, :, h], k[b, :, h], v[b, :, h], b)
            return out @ p["out"]["kernel"] + p["out"]["bias"]

        def add_mlp(x, p=p):
            y = norm(x, p["norm_2"]) @ p["fc1"]["kernel"] + p["fc1"]["bias"]
            return x + (y / (1 + np.exp(-1.702 * y))) @ p["fc2"]["kernel"] + p["fc2"]["bias"]

        seen = attended(EQUATIONS["clip_surgery"])
        own = own + seen if residual else seen
        own = add_mlp(own) if mlp else own
        x = add_mlp(x + attended(EQUATIONS["clip"]))
    np.testing.assert_allclose(z, norm(own, jax.tree.map(np.asarray, params["post_norm"])), rtol=2e-5, atol=2e-5)


def test_no_second_stream_is_the_plain_tower(tower):
    pixels, params, _ = tower
    plain = ViT(VISION).apply({"params": params}, pixels).tokens
    for stream in (method("clip", VISION, 3), SecondStream(plain_attention, 4, True, True)):
        for tokens in jax.tree.leaves(ViT(VISION).apply({"params": params}, pixels, stream)):
            np.testing.assert_allclose(tokens, plain, rtol=1e-5, atol=1e-5)


def test_work_that_no_output_needs_is_not_done(tower):
    pixels, params, _ = tower
    wide = jnp.zeros((1, 40, 40, 3))
    stream = method("gem", VISION, 3)

    def flops(which: str | None) -> float:
        def tokens(params, pixels):
            both = ViT(VISION).apply({"params": params}, pixels, stream)
            return both if which is None else getattr(both, which)

        return jax.jit(tokens).lower(params, wide).compile().cost_analysis()["flops"]

    n, width, mlp = 101, VISION.width, VISION.mlp
    last = 2 * n * (width * width + 2 * width * mlp) + 4 * n * n * width  # x's attention, projection and MLP there
    assert flops(None) - flops("second") >= 0.95 * last


def test_which_blocks_carry_the_stream():
    deep = dataclasses.replace(VISION, depth=12)
    blocks = {name: method(name, deep).blocks for name in ATTENTION_METHODS}
    assert blocks == {
        "clip": 0,
        "maskclip": 1,
        "clip_surgery": 6,
        "sclip": 1,
        "clearclip": 1,
        "naclip": 1,
        "naclip_log": 1,
        "proxyclip": 1,
        "corrclip": 1,
        "gem": 6,
    }
    assert method("gem", deep, depth=2).blocks == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "germ"}, "attention 'germ': expected one of clip, maskclip"),
        ({"name": "gem", "depth": 6}, "depth 6: expected 2 to 5"),
        ({"name": "gem", "depth": 1}, "depth 1: expected 2 to 5"),
        ({"name": "gem", "depth": 3, "iterations": -1}, "iterations -1: expected 0 or more"),
        ({"name": "gem", "depth": 3, "temperature": 0.0}, "temperature 0.0: expected a number over 0"),
        ({"name": "gem", "depth": 3, "parts": "qq"}, "parts 'qq': expected one or more of q, k, v"),
        ({"name": "gem", "depth": 3, "parts": ""}, "parts '': expected one or more of q, k, v"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        method(options.pop("name"), VISION, **options)
