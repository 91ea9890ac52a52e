"""The shapes in the annotations of models and decoding hold: every call of whole VLMs, checked while it is traced."""

import functools
import pathlib
import subprocess
import sys

from jaxtyping import install_import_hook


def checked(function):
    """A function whose annotations are checked; not the constructors of Flax's modules, whose types are Flax's own."""
    from beartype import beartype

    return function if function.__name__ == "__init__" else beartype(function)


def calls() -> None:
    """Traces each way of running each kind of VLM, and of a CLIP; nothing is computed."""
    import jax
    import jax.numpy as jnp

    from gem_jax.attention import method
    from pin_jax.decoding import search
    from pin_jax.models.blip2 import Blip2, Blip2Config
    from pin_jax.models.clip import CLIP, CLIPConfig, TextConfig
    from pin_jax.models.flamingo import Flamingo
    from pin_jax.models.interface import Inserts
    from pin_jax.models.language.gpt_neox import GPTNeoXConfig
    from pin_jax.models.language.opt import OPTConfig
    from pin_jax.models.language.t5 import T5Config
    from pin_jax.models.qformer import QFormerConfig
    from tests.fixtures import tiny

    small = {"vocab": 30, "width": 16, "depth": 1, "heads": 2, "mlp": 32}
    qformer = QFormerConfig(queries=2, width=16, depth=1, heads=2, mlp=32, cross_every=1)
    blip2 = {lm: Blip2(Blip2Config(tiny.VISION, qformer, lm, tiny.IMAGE, tiny.END, tiny.PAD))
             for lm in (OPTConfig(**small, positions=32), T5Config(**small, decoder_depth=1, head_dim=8))}  # fmt: skip
    flamingos = [Flamingo(tiny.flamingo_config()), Flamingo(tiny.flamingo_config(lm=GPTNeoXConfig(**small)))]
    ids = jax.ShapeDtypeStruct((4, 7), jnp.int32)
    mask, weights = ids.update(dtype=bool), ids.update(dtype=jnp.float32)
    pixels = jax.ShapeDtypeStruct((2, 1, 28, 28, 3), jnp.float32)
    for model in (*blip2.values(), *flamingos):
        apart = isinstance(model.config.lm, T5Config)
        texts = {"ids": ids, "target": weights} | ({"labels": ids} if apart else {})

        def everything(module, pixels, texts):
            return module.predict(module.encode(pixels), texts)

        init = functools.partial(model.init, method=everything)
        params = jax.eval_shape(init, jax.random.key(0), pixels, texts)

        def shape(method, *inputs, params=params, model=model, **options):
            return jax.eval_shape(lambda p, *x: model.apply(p, *x, **options, method=method), params, *inputs)

        tokens = model.config.media_tokens
        inserts = Inserts(vision_output=jax.ShapeDtypeStruct((tokens, 16), jnp.float32))
        vision = shape("encode", pixels, inserts)
        assert shape("__call__", pixels, ids, mask, inserts, None, *([ids] if apart else [])).shape == (4, 7, 30)
        places = jax.ShapeDtypeStruct((4, 3), jnp.int32)
        assert shape("predict", vision, texts | {"places": places}, inserts)[0].shape == (4, 3, 30)
        for ragged in (False, True):
            logits, cache = shape("prefill", vision, ids, mask, inserts=Inserts(), steps=3, ragged=ragged)
            beams = jax.eval_shape(lambda cache: cache.reorder(jnp.repeat(jnp.arange(4), 3)), cache)
            more = jax.ShapeDtypeStruct((12, 2), jnp.int32)
            lengths = [jax.ShapeDtypeStruct((12,), jnp.int32)] if ragged else []
            assert shape("step", beams, more, *lengths)[0].shape == (12, 30)
        found = search.beam.eval_shape(model, params["params"], vision, ids, mask, inserts, 4)
        assert found.shape == (4, 4)
    clip = CLIP(CLIPConfig(tiny.VISION, TextConfig(vocab=30, context=7, width=16, depth=1, heads=2, mlp=32), 8))
    params = jax.eval_shape(clip.init, jax.random.key(0), pixels.update(shape=(2, 28, 28, 3)), ids)
    for name in ("gem", "naclip", "sclip"):
        stream = method(name, clip.config.vision, 2)
        run = lambda p, x, stream=stream: clip.apply(p, x, stream, method="image_tokens")  # noqa: E731
        assert jax.eval_shape(run, params, pixels.update(shape=(2, 28, 28, 3))).second.shape == (2, 5, 8)


def test_annotated_shapes_hold():
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
    with install_import_hook(["pin_jax.models", "pin_jax.decoding", "gem_jax.attention"], "test_shapes.checked"):
        calls()
