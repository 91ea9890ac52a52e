"""Train step, forward pass and decoding of BLIP-2 or SmolVLM, against transformers and KerasHub in the same run.

  python benchmarks/pin_step.py --model mid --batch 4                      # a BLIP-2 on a CPU, minutes
  python benchmarks/pin_step.py --model smolvlm-256m --batch 2 --peers torch
  python benchmarks/pin_step.py --model opt-2.7b --dtype bfloat16 --batch 64 --out results.json      # an H100

Weights are random: speed does not depend on them. Both sides train the insert on a frozen model (vision encoder without
gradient, backward through language model and connector, Adam) and write 12 tokens, on the same shapes. KerasHub, on
its JAX backend, only runs BLIP-2's forward pass: pixels and ids to logits. A peer that is not installed is left out; it
may be in another environment (`--torch-python`, `--keras-python`). Peers run one after the other, so the machine should
be idle.
MFU is the work that the model needs (no recomputation) over the rate of a large matrix product measured here.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from input_pipeline.text.box_codec import BoxCodec  # noqa: E402
from pin_jax import train  # noqa: E402
from pin_jax.decoding import search as decode  # noqa: E402
from pin_jax.methods import METHODS  # noqa: E402
from pin_jax.models.blip2 import Blip2, Blip2Config  # noqa: E402
from pin_jax.models.interface import Inserts  # noqa: E402
from pin_jax.models.language.opt import OPTConfig  # noqa: E402
from pin_jax.models.qformer import QFormerConfig  # noqa: E402
from pin_jax.models.smolvlm import SMOLVLM_256M, SMOLVLM_500M, SmolVLM, SmolVLMConfig  # noqa: E402
from pin_jax.models.vit import ViTConfig  # noqa: E402
from pin_jax.runtime import flops, sharding  # noqa: E402
from pin_jax.vlm import VLM, skeleton  # noqa: E402
from pin_jax.weights.blip2 import SHAPES  # noqa: E402
from pin_jax.weights.parameters import count_parameters  # noqa: E402

# An OPT-125m under a ViT-B and six layers of the published Q-Former.
MID = Blip2Config(
    vision=ViTConfig(width=768, depth=12, heads=12, mlp=3072, act="gelu", eps=1e-6, patch_bias=True, pre_norm=False),
    qformer=QFormerConfig(depth=6),
    lm=OPTConfig(vocab=50304, width=768, depth=12, heads=12, mlp=3072),
    image_token=50265, end_token=2, pad_token=1,
)  # fmt: skip
TINY = dataclasses.replace(  # to see that the script runs
    MID,
    vision=dataclasses.replace(MID.vision, width=64, depth=2, heads=2, mlp=128),
    qformer=QFormerConfig(width=64, depth=2, heads=2, mlp=128),
    lm=dataclasses.replace(MID.lm, width=64, depth=2, heads=2, mlp=128),
)
MODELS: dict[str, Any] = {"tiny": TINY, "mid": MID} | {n: config for n, config in SHAPES.items() if "opt" in n}
MODELS |= {"smolvlm-256m": SMOLVLM_256M, "smolvlm-500m": SMOLVLM_500M}
STEPS = 12


def rate(work: Callable[[], Any], items: int, seconds: float) -> float:
    """Items per second: the median of as many calls as fit (at least three), after one to warm up."""
    work()
    taken, begin = [], time.perf_counter()
    while len(taken) < 3 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return items / float(np.median(taken))


def matmul_peak(dtype: str, seconds: float) -> float:
    """FLOP/s of a large product, the ceiling that MFU refers to."""
    n = 8192 if jax.default_backend() != "cpu" else 1024
    a = jnp.ones((n, n), dtype)
    product = jax.jit(lambda a: a @ a)
    return 2 * n**3 * rate(lambda: product(a).block_until_ready(), 1, seconds)


def random_params(shapes: Any) -> Any:
    """Weights on the device, leaf by leaf."""

    def draw(spec, key):
        make = jax.jit(lambda key: jax.random.normal(key, spec.shape, spec.dtype) * jnp.asarray(0.02, spec.dtype))
        return make(key)

    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, [draw(x, jax.random.key(i)) for i, x in enumerate(leaves)])


def image_places(config: Blip2Config | SmolVLMConfig) -> int:
    """Tokens of a text that an image takes."""
    return config.image_places if isinstance(config, SmolVLMConfig) else config.qformer.queries


def inputs(config: Blip2Config | SmolVLMConfig, batch: int, length: int) -> dict[str, np.ndarray]:
    """One batch: pictures, texts with the image's places in front, and which tokens count."""
    rng, queries = np.random.default_rng(0), image_places(config)
    ids = rng.integers(3, 49000, (batch, queries + length), dtype=np.int32)
    ids[:, :queries] = config.image_token
    target = np.zeros(ids.shape, np.float32)
    target[:, -10:] = 1  # a box and its end
    places = np.tile(np.arange(queries + length - 10, queries + length, dtype=np.int32), (batch, 1))
    size = config.vision.image_size
    return {
        "image": rng.integers(0, 255, (batch, size, size, 3), np.uint8),
        "ids": ids,
        "target": target,
        "places": places,
    }


def several_questions(
    config: Blip2Config | SmolVLMConfig, options: argparse.Namespace, batch: dict[str, Any], step: Any, held: list[Any]
) -> dict[str, float]:
    """Questions a second of training steps that ask several of an image: all read from the beginning, or behind one.

    Vision tokens are given, as where `config.cache_images` keeps them.
    """
    asked, opening = options.questions, image_places(config) + 4  # and `In the image is`
    rows, width = len(batch["ids"]), config.vision.width
    vision = jax.random.normal(jax.random.key(0), (rows, config.media_tokens, width)).astype(options.dtype)
    each = {k: jnp.repeat(batch[k], asked, 1) for k in ("ids", "target", "places")} | {"vision": vision}
    once = {**each, **{k: each[k][..., opening:] for k in ("ids", "target")}, "places": each["places"] - opening}
    once["opening"] = each["ids"][:, 0, :opening]
    found = {}
    for name, texts in (("each_from_its_beginning", each), ("behind_one_beginning", once)):

        def one_step(texts=texts):
            held[0], metrics = step(texts)
            return jax.block_until_ready(metrics)

        found[f"{name}_questions_per_second"] = rate(one_step, rows * asked, options.seconds)
    once_rate, each_rate = (
        found[f"{name}_questions_per_second"] for name in ("behind_one_beginning", "each_from_its_beginning")
    )
    return {"questions_an_image": asked, **found, "times_as_fast": once_rate / each_rate}


def ours(
    config: Blip2Config | SmolVLMConfig, options: argparse.Namespace, batch: dict[str, np.ndarray]
) -> dict[str, Any]:
    """This project's numbers."""
    dtype = None if options.dtype == "float32" else options.dtype
    smol = isinstance(config, SmolVLMConfig)
    trained = ("lm",) if smol else ("qformer", "lm")  # through which the gradient goes
    parts = {name: dataclasses.replace(getattr(config, name), dtype=dtype) for name in ("vision", *trained)}
    parts["vision"] = dataclasses.replace(parts["vision"], attention=options.attention)
    for name in trained:
        parts[name] = dataclasses.replace(parts[name], remat=options.remat)
    model: Any = (SmolVLM if smol else Blip2)(dataclasses.replace(config, **parts))
    shapes = skeleton(model, dict.fromkeys(("vision", "qformer", "projection", "lm"), options.dtype))
    params = random_params(shapes)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    vlm = VLM(model, params, None, BoxCodec(config.vision.image_size), (0.5,) * 3, (0.5,) * 3, "", mesh=mesh)
    method = METHODS["pin"](model.config)
    tx = train.optimiser(ConfigDict({"lr": 1e-3, "schedule": "constant", "steps": 1}))
    step, held = train.make_step(vlm, method, tx), [train.initial(method, tx, 0)]
    held[0] = sharding.replicate(held[0], mesh)
    rows = len(batch["ids"])
    device = {
        "image": jax.device_put(batch["image"]),
        **{k: jax.device_put(batch[k][:, None]) for k in ("ids", "target", "places")},
    }
    work = flops.count_flops(
        step, *jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (held[0], params, device))
    )

    def one_step():
        held[0], metrics = step(held[0], params, device)
        return jax.block_until_ready(metrics)

    out = {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "parameters": count_parameters(params),
        "flops_per_sample": work / rows,
    }
    out["matmul_flops_per_second"] = matmul_peak(options.dtype, min(options.seconds, 5))
    out["train_samples_per_second"] = samples = rate(one_step, rows, options.seconds)
    out["train_mfu"] = samples * work / rows / out["matmul_flops_per_second"]
    out["hours_for_150000_steps_of_64"] = 150_000 * 64 / samples / 3600
    if options.questions > 1:
        out |= several_questions(config, options, device, lambda texts: step(held[0], params, texts), held)
    forward = jax.jit(lambda params, image, ids: model.apply({"params": params}, vlm.pixels(image)[:, None], ids))
    out["forward_samples_per_second"] = rate(
        lambda: forward(params, device["image"], device["ids"][:, 0]).block_until_ready(), rows, options.seconds
    )
    prompt = jax.device_put(batch["ids"][:, :-10])
    inserts = method.inserts(held[0].trainable)
    for name, search, extra in (("greedy", decode.greedy, {}), ("beams", decode.beam, {"beams": 3})):
        # The end token is suppressed, so that every text has its 12 tokens on either side.
        common = (prompt, jnp.ones(prompt.shape, bool), inserts, STEPS, (config.end_token,))

        def write(search=search, extra=extra, common=common):  # from pixels, as the peer does
            vision = vlm._encode(params, device["image"], Inserts())[:, None]
            return search(model, params, vision, *common, **extra).block_until_ready()

        out[f"{name}_samples_per_second"] = rate(write, rows, options.seconds)
    return out


def blip2_of_torch(config: Blip2Config) -> tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]:
    """transformers' BLIP-2: its language model; pixels -> vision tokens; those -> what the language model reads."""
    import transformers

    vision, qformer, lm = config.vision, config.qformer, config.lm
    theirs = transformers.Blip2Config(
        vision_config={
            "hidden_size": vision.width, "intermediate_size": vision.mlp, "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.heads, "image_size": vision.image_size, "patch_size": vision.patch,
        },
        qformer_config={
            "hidden_size": qformer.width, "num_hidden_layers": qformer.depth, "intermediate_size": qformer.mlp,
            "num_attention_heads": qformer.heads, "encoder_hidden_size": vision.width,
        },
        text_config={
            "model_type": "opt", "vocab_size": lm.vocab, "hidden_size": lm.width, "num_hidden_layers": lm.depth,
            "ffn_dim": lm.mlp, "num_attention_heads": lm.heads, "word_embed_proj_dim": lm.width,
        },
        num_query_tokens=qformer.queries,
        image_token_index=config.image_token,
    )  # fmt: skip
    model = transformers.Blip2ForConditionalGeneration(theirs).eval().requires_grad_(False)

    def connect(seen):
        queries = model.query_tokens.expand(len(seen), -1, -1)
        return model.language_projection(
            model.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state
        )

    return model.language_model, lambda pixels: model.vision_model(pixels).last_hidden_state, connect


def smolvlm_of_torch(config: SmolVLMConfig) -> tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]:
    """transformers' Idefics3, as `blip2_of_torch`."""
    import torch
    import transformers
    from transformers.models.idefics3 import modeling_idefics3

    vision, lm = config.vision, config.lm
    theirs = transformers.Idefics3Config(
        vision_config={
            "hidden_size": vision.width, "intermediate_size": vision.mlp, "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.heads, "image_size": vision.image_size, "patch_size": vision.patch,
        },
        text_config={
            "model_type": "llama", "vocab_size": lm.vocab, "hidden_size": lm.width, "num_hidden_layers": lm.depth,
            "intermediate_size": lm.mlp, "num_attention_heads": lm.heads, "num_key_value_heads": lm.key_heads,
            "head_dim": lm.head_dim,
        },
        scale_factor=config.shuffle,
    )  # fmt: skip
    tower = transformers.Idefics3VisionTransformer(theirs.vision_config).eval().requires_grad_(False)
    connector = modeling_idefics3.Idefics3Connector(theirs).eval().requires_grad_(False)
    language = transformers.LlamaForCausalLM(theirs.text_config).eval().requires_grad_(False)
    side = vision.grid

    def see(pixels):
        whole = torch.ones((len(pixels), side, side), dtype=torch.bool, device=pixels.device)
        return tower(pixels, patch_attention_mask=whole).last_hidden_state

    return language, see, connector


def torchs(
    config: Blip2Config | SmolVLMConfig, options: argparse.Namespace, batch: dict[str, np.ndarray]
) -> dict[str, Any]:
    """transformers on torch: the same frozen-backbone step, and generate()."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, options.dtype)
    with torch.device(device):
        torch.set_default_dtype(dtype)
        smol = isinstance(config, SmolVLMConfig)
        language, see, connect = smolvlm_of_torch(config) if smol else blip2_of_torch(config)
        torch.set_default_dtype(torch.float32)
        layers, width = [], 64
        for hidden in (512, 768):
            layers += [torch.nn.Linear(width, hidden), torch.nn.SiLU(), torch.nn.LayerNorm(hidden)]
            width = hidden
        insert = torch.nn.Sequential(*layers, torch.nn.Linear(width, config.vision.width))
        places = torch.randn(config.media_tokens, 64)
    optimiser = torch.optim.Adam(insert.parameters(), lr=1e-3)
    image = torch.from_numpy(batch["image"].transpose(0, 3, 1, 2).copy()).to(device)
    ids = torch.from_numpy(batch["ids"]).long().to(device)
    labels = torch.where(torch.from_numpy(batch["target"]).to(device) > 0, ids, -100)
    rows = len(ids)

    def pixels():
        return ((image.float() / 255 - 0.5) / 0.5).to(dtype)

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    def media(grad: bool):
        with torch.no_grad():
            seen = see(pixels())
        with torch.set_grad_enabled(grad):
            return connect((seen + insert(places)).to(dtype))

    def embeds(ids, grad):
        words = language.get_input_embeddings()(ids)
        return torch.cat([media(grad), words[:, image_places(config) :]], 1)

    def one_step():
        optimiser.zero_grad()
        logits = language(inputs_embeds=embeds(ids, True)).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        optimiser.step()
        wait()

    out = {"train_samples_per_second": rate(one_step, rows, options.seconds)}
    for name, beams in (("greedy", 1), ("beams", 3)):

        def generate(beams=beams):
            with torch.no_grad():
                x = embeds(ids[:, :-10], False)
                language.generate(
                    inputs_embeds=x, attention_mask=torch.ones(x.shape[:2], dtype=torch.long, device=device),
                    num_beams=beams, do_sample=False, max_new_tokens=STEPS, min_new_tokens=STEPS,
                )  # fmt: skip
            wait()

        out[f"{name}_samples_per_second"] = rate(generate, rows, options.seconds)
    return out


def kerass(config: Blip2Config, options: argparse.Namespace, batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """KerasHub's BLIP-2 on the JAX backend: the forward pass, compiled, all logits."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras
    import keras_hub
    from keras_hub import models

    keras.config.set_dtype_policy(options.dtype)
    vision, qformer, lm = config.vision, config.qformer, config.lm
    encoder = models.BLIP2VisionEncoder(
        image_size=vision.image_size, patch_size=vision.patch, num_layers=vision.depth, num_heads=vision.heads,
        hidden_dim=vision.width, intermediate_dim=vision.mlp, use_patch_bias=True, use_class_token=True,
        use_mha_bias=True, use_mlp_bias=True, dropout_rate=0.0, layer_norm_epsilon=vision.eps, initializer_range=0.02,
    )  # fmt: skip
    queries = models.BLIP2QFormer(
        num_query_tokens=qformer.queries, num_layers=qformer.depth, num_heads=qformer.heads, hidden_dim=qformer.width,
        intermediate_dim=qformer.mlp, vision_dim=vision.width, cross_attention_frequency=qformer.cross_every,
        dropout=0.0, layer_norm_epsilon=qformer.eps,
    )  # fmt: skip
    text = models.BLIP2CustomOPT(
        vocabulary_size=lm.vocab, num_layers=lm.depth, num_heads=lm.heads, hidden_dim=lm.width,
        intermediate_dim=lm.mlp, num_query_tokens=qformer.queries, dropout=0.0, max_sequence_length=lm.positions,
        qformer_hidden_dim=qformer.width,
    )  # fmt: skip
    model = models.BLIP2Backbone(vision_encoder=encoder, qformer=queries, language_model=text)
    weights = [[v.value for v in part] for part in (model.trainable_variables, model.non_trainable_variables)]

    @jax.jit
    def forward(trainable, rest, image, ids):
        given = {"images": (image / 255.0 - 0.5) / 0.5, "token_ids": ids, "padding_mask": jnp.ones_like(ids)}
        hidden, _ = model.stateless_call(trainable, rest, given)
        table = trainable[table_at]  # the tied head, as KerasHub's own `reverse=True` computes it
        return jnp.einsum("btd,vd->btv", hidden, table)

    table_at = next(i for i, v in enumerate(model.trainable_variables) if v is model.token_embedding.embeddings)
    image, ids = jax.device_put(batch["image"]), jax.device_put(batch["ids"][:, qformer.queries :])
    shape = jax.eval_shape(forward, *weights, image, ids).shape
    assert shape == (*batch["ids"].shape, lm.vocab), shape
    rows = len(batch["ids"])
    taken = rate(lambda: forward(*weights, image, ids).block_until_ready(), rows, options.seconds)
    return {"keras_hub": keras_hub.__version__, "parameters": model.count_params(), "forward_samples_per_second": taken}


PARTS = {"ours": ours, "torch": torchs, "keras": kerass}
NEEDS = {"torch": "torch", "keras": "keras_hub"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="mid")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=24, help="tokens of a text behind the image's own")
    parser.add_argument("--questions", type=int, default=0, help="of an image, in training steps measured beside these")
    parser.add_argument("--remat", choices=("none", "full", "dots"), default="none")
    parser.add_argument("--attention", choices=("xla", "cudnn"), default="xla", help="of the vision encoder")
    parser.add_argument("--seconds", type=float, default=20, help="for each measurement")
    parser.add_argument("--peers", default="torch,keras", help="some of torch,keras; empty for none")
    parser.add_argument("--torch-python", default=sys.executable, help="an interpreter with torch and transformers")
    parser.add_argument("--keras-python", default=sys.executable, help="an interpreter with keras-hub and this project")
    parser.add_argument("--out", default="")
    parser.add_argument("--part", choices=PARTS, help="one side alone, printed as JSON")
    options = parser.parse_args()
    peers = [name for name in options.peers.split(",") if name]
    if set(peers) - set(NEEDS):
        parser.error(f"--peers {options.peers}: expected some of {','.join(NEEDS)}")
    config = MODELS[options.model]
    if isinstance(config, SmolVLMConfig):
        peers = [name for name in peers if name != "keras"]
    batch = inputs(config, options.batch, options.length)
    if options.part:
        print(json.dumps(PARTS[options.part](config, options, batch)))
        return
    skip = ("out", "part", "torch_python", "keras_python")
    result: dict[str, Any] = {"settings": {k: v for k, v in vars(options).items() if k not in skip}}
    for name in ("ours", *peers):
        # Each in a process of its own: the other would keep the device's memory.
        python = {"torch": options.torch_python, "keras": options.keras_python}.get(name, sys.executable)
        looked = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"
        if name in NEEDS and subprocess.run([python, "-c", looked, NEEDS[name]]).returncode:
            print(f"{python} has no {NEEDS[name]}: that peer is left out")
            continue
        command = [python, __file__, *sys.argv[1:], "--part", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        result[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, json.dumps(result[name], indent=1), flush=True)
        if name != "ours":
            ratio = {k: result["ours"][k] / v for k, v in result[name].items() if k.endswith("_second")}
            result[f"ratio_to_{name}"] = ratio
            print(f"ratio to {name}", json.dumps(ratio, indent=1), flush=True)
    if options.out:
        result["date"] = time.strftime("%Y-%m-%d")
        pathlib.Path(options.out).write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
