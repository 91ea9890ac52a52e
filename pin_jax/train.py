"""Trains a method on a frozen VLM by next-token prediction on pasted scenes (PIN, section 3).

Two trees: `frozen` (the VLM) and `trainable` (the method's). Only `trainable` is differentiated, has optimiser state
and is checkpointed. The vision encoder runs once per image for all questions asked of it, and no gradient enters it
unless the method acts inside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from pin_jax import adapters, methods
from pin_jax.runtime import files, reporting, sharding
from pin_jax.runtime.checkpoints import Checkpoints
from pin_jax.runtime.files import AnyPath
from pin_jax.runtime.meter import Meter, Profile, device_memory
from pin_jax.runtime.optimiser import OFF, averaged, learning_rate_at, optimiser, warmup_steps
from pin_jax.runtime.prefetch import prefetched
from pin_jax.runtime.processes import launch, preemption
from pin_jax.training_data import draw_first_batch, training_batches, training_source
from pin_jax.validation import Validation
from pin_jax.vlm import VLM
from pin_jax.weights.parameters import count_parameters

OUTGROWN = 10  # times the size of the vision tokens: an insert that large hides them
# What a workdir is bound to; the other entries may change between runs.
TRAINING = (
    "seed", "vlm", "language_model", "vision", "grid", "placement", "example", "method", "method_options", "dtype",
    "scenes", "train_scenes", "vary_backgrounds", "curriculum", "questions_per_image", "text_length", "cache_images",
    "batch_size", "steps", "lr", "schedule", *OFF,
)  # fmt: skip


# What a config without these entries means: workdirs from before they existed are bound to these values.
FORMER = OFF | {"placement": "answer", "example": []}


def training_entries(config: dict[str, Any]) -> dict[str, Any]:
    """The entries of a config, as JSON, that a trained method depends on; one that is missing has its default."""
    config = FORMER | config
    return {key: config.get(key) for key in TRAINING}


def binding(config: ConfigDict, vlm: VLM) -> dict[str, Any]:
    """What a workdir and its checkpoints are bound to: those entries of a config, and the frozen weights."""
    return training_entries(json.loads(config.to_json_best_effort())) | {"frozen": vlm.identity}


@flax.struct.dataclass
class State:
    """What training changes: step int32, trainable parameters float32, optimiser state."""

    step: jax.Array
    trainable: Any
    opt: Any


# --- loss and step ----------------------------------------------------------------------------------------------------


def box_loss(model: Any, frozen: Any, inserts: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """Next-token cross-entropy over the target tokens of all questions.

    Args:
      batch: vision float[B, N, D], ids int[B, Q, T], target float[B, Q, T]; labels int[B, Q, T] where answers stand
        apart from their prompts; with places int[B, Q, P], of the tokens that count, only they go through the head;
        with opening int[B, S], what all questions of an image begin with is read once, and ids are what is behind it;
        with told int[B, C] too, rows of the same tokens, these stand in front of all openings and are read once for
        all.
    """
    texts = {k: v.reshape(-1, v.shape[-1]) for k, v in batch.items() if k in ("ids", "target", "labels", "places")}
    texts |= {k: v for k, v in batch.items() if k in ("opening", "told")}
    logits, labels, weights = model.apply(
        inserts.variables(frozen), batch["vision"][:, None], texts, inserts, method="predict"
    )
    cost = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return (cost * weights).sum() / jnp.maximum(weights.sum(), 1)


def global_batch(config: ConfigDict, mesh: Mesh | None) -> int:
    """Images of a batch: config.batch_size over all devices, or config.batch_per_device on each that has its own rows.

    Devices along the mesh's `tensor` axis share their rows, and count as one.
    """
    return config.get("batch_per_device", 0) * sharding.row_ways(mesh) or config.batch_size


def initial(method: Any, tx: optax.GradientTransformation, seed: int, frozen: Any = None) -> State:
    """The state before the first step; some methods ask for the shapes of the frozen parameters."""
    trainable = method.init(jax.random.key(seed), frozen)
    return State(jnp.zeros((), jnp.int32), trainable, tx.init(trainable))


def make_step(vlm: VLM, method: Any, tx: optax.GradientTransformation, seed: int = 0):
    """The jitted train step: (state, frozen, batch) -> state, metrics. The state is donated.

    Args:
      seed: of what a method draws (dropout), anew in every step.

    Returns:
      The step. Its metrics, float32 each: loss; grad_norm, of all trainable parameters together; for a method that adds
      to the vision encoder's output, insert_norm and token_norm, the mean size of what is added to a vision token and
      of the token.
    """

    def encoded(frozen: Any, inserts: Any, images: jax.Array) -> jax.Array:
        pixels = vlm.pixels(images)[:, None]
        tokens: Any = vlm.model.apply(inserts.variables(frozen), pixels, inserts, method="encode")
        return tokens[:, 0]

    def step(state: State, frozen: Any, batch: dict[str, jax.Array]) -> tuple[State, dict[str, jax.Array]]:
        rng, images = jax.random.fold_in(jax.random.key(seed), state.step), batch["ids"].shape[0]

        def loss_fn(trainable):
            inserts = method.inserts(trainable, rng, images)
            vision = batch.get("vision")
            if vision is None:  # nothing cached: the encoder runs here, once per image
                vision = encoded(frozen, inserts, batch["image"])
                vision = vision if inserts.in_vision else jax.lax.stop_gradient(vision)
            return box_loss(vlm.model, frozen, inserts, {**batch, "vision": vision}), _sizes(inserts, vision)

        (loss, sizes), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.trainable)
        updates, opt = tx.update(grads, state.opt, state.trainable)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **sizes}
        return State(state.step + 1, optax.apply_updates(state.trainable, updates), opt), metrics

    replicated = None if vlm.mesh is None else NamedSharding(vlm.mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, out_shardings=replicated)


def _sizes(inserts: Any, vision: jax.Array) -> dict[str, jax.Array]:
    """Mean sizes of psi(S) and of the vision tokens that it is added to; see `make_step`."""
    if inserts.vision_output is None:
        return {}

    def size(tokens: jax.Array) -> jax.Array:
        return jnp.linalg.norm(jax.lax.stop_gradient(tokens).astype(jnp.float32), axis=-1).mean()

    return {"insert_norm": size(inserts.vision_output), "token_norm": size(vision)}


# --- loop -------------------------------------------------------------------------------------------------------------


def train(config: ConfigDict, workdir: AnyPath, vlm: VLM) -> Any:
    """Trains, or goes on where the workdir's last checkpoint stands; returns the trained parameters.

    Raises:
      UserError: NaN loss (the last good state stays), a full disk, a workdir of other frozen weights.
      preemption.Preempted: after SIGTERM, once the state is saved.
    """
    method = methods.build(config.method, vlm.model.config, config.method_options)
    refuse_float16(vlm, in_vision(method, vlm.params))
    tx = optimiser(config)
    mesh, frozen = vlm.mesh, vlm.params
    state = sharding.replicate(initial(method, tx, config.seed, frozen), mesh)
    checkpoints = Checkpoints(workdir, vlm.identity, binding(config, vlm), config.get("keep", 3))
    restored = checkpoints.restore(state)
    if restored and restored[0] >= config.steps:
        reporting.say(f"training is done: {restored[0]} steps in {workdir}")
        return averaged(restored[1].trainable, restored[1].opt, config.get("ema", 0.0))
    source = training_source(config, vlm, workdir, in_vision(method, frozen))
    first = 0
    if restored:
        first, state, _ = restored
        reporting.say(f"going on from step {first} of {config.steps}")
    iterator = training_batches(config, vlm, source, first)
    step_fn = make_step(vlm, method, tx, config.seed)
    log, outgrown = reporting.Log(workdir, wandb_config(config)), False
    validate = Validation(config, workdir, vlm) if config.get("eval_every", 0) else None
    meter, profile = Meter(), Profile(config.get("profile", ()), workdir / "profile")

    def make() -> dict[str, jax.Array]:
        batch = next(iterator)
        if not drawn:
            drawn.append(True)
            if first == 0 and jax.process_index() == 0:
                log.picture(draw_first_batch(workdir, vlm, source, batch))
        return sharding.from_local_rows(batch, mesh)

    def trained() -> Any:
        return averaged(state.trainable, state.opt, config.get("ema", 0.0))

    def save(step: int, loss: jax.Array) -> None:
        if not np.isfinite(float(loss)):
            checkpoints.wait()
            kept = checkpoints.steps()
            raise UserError(
                f"loss is {float(loss)} at step {step}: training stopped; "
                + (f"the state of step {max(kept)} is kept; " if kept else "")
                + "lower config.lr, or look at the data"
            )
        export_insert(config, workdir, vlm, step, jax.device_get(trained()))
        checkpoints.save(step, state)

    drawn: list[bool] = []
    title, total = f"training {config.method}", config.steps * config.batch_size
    bar = reporting.progress(title, total, "image", config.get("say_every", reporting.SAY_EVERY))
    with preemption.waits(), contextlib.closing(profile), prefetched(make) as next_batch, bar as advance:
        meter.restart()
        metrics: dict[str, jax.Array] = {}
        for i in range(first + 1, config.steps + 1):
            with meter.waiting():
                batch = next_batch()
            profile.before(i)
            before = metrics
            with sharding.on(mesh):
                state, metrics = step_fn(state, frozen, batch)
            jax.block_until_ready(before)  # one step runs, one waits: batches do not pile up on the devices
            profile.after(i, metrics)
            meter.count(config.batch_size)
            last, stopped = i == config.steps, preemption.reached()
            # A run that is to end within seconds has no time for an evaluation.
            scored = validate is not None and not stopped and (i % config.eval_every == 0 or last)
            if i % config.log_every == 0 or last or scored:
                values = {name: float(value) for name, value in metrics.items()}
                values |= {"learning_rate": learning_rate_at(config, i), **meter.read(), **device_memory()}
                if validate is not None and scored and np.isfinite(values["loss"]):
                    values |= validate(i, method, jax.device_get(trained()))
                    meter.restart()
                log.scalars(i, **values)
                advance(i * config.batch_size, f"loss {values['loss']:.3f}")
                outgrown = outgrown or _warn_of_size(i, values)
            if i % config.save_every == 0 or last or stopped or not np.isfinite(log.latest_loss):
                save(i, metrics["loss"])
                meter.restart()
            if i == first + 1:  # the first step compiles
                jax.block_until_ready(metrics)
                meter.restart()
            if stopped:
                checkpoints.wait()
                reporting.say(f"SIGTERM: state of step {i} is saved; the same command goes on from there")
                raise preemption.Preempted
    checkpoints.wait()
    checkpoints.close()
    log.close()
    return trained()


def wandb_config(config: ConfigDict) -> dict[str, Any] | None:
    """What Weights & Biases is told of a run; None without config.wandb."""
    return json.loads(config.to_json_best_effort()) if config.get("wandb", False) else None


def export_insert(config: ConfigDict, workdir: AnyPath, vlm: VLM, step: int, params: Any) -> None:
    """Writes inserts/STEP.safetensors beside the checkpoint of a step; those of the last config.keep steps stay."""
    if jax.process_index() > 0:
        return
    folder = epath.Path(workdir) / "inserts"
    files.make_folder(folder)
    adapters.save(folder / f"{step}.safetensors", params, config, vlm)
    steps = sorted(int(path.stem) for path in folder.glob("*.safetensors") if path.stem.isdigit())
    for old in steps[: -config.get("keep", 3)]:
        for ending in (".safetensors", ".json"):
            files.remove(folder / f"{old}{ending}")


def _warn_of_size(step: int, values: dict[str, float]) -> bool:
    """Says that an insert has outgrown the tokens it is added to; returns whether it has."""
    insert, tokens = values.get("insert_norm", 0.0), values.get("token_norm", 0.0)
    outgrown = insert > OUTGROWN * tokens > 0
    if outgrown:
        reporting.say(
            f"step {step}: the insert is {insert:.1f} long, {insert / tokens:.0f} times the vision tokens it is added"
            f" to ({tokens:.1f}), which hides the picture; lower config.lr, or warm up (config.warmup)"
        )
    return outgrown


def refuse_float16(vlm: VLM, in_vision: bool) -> None:
    """Refuses to train through float16, whose gradients underflow without loss scaling.

    Args:
      in_vision: gradients go through the vision encoder too.

    Raises:
      UserError: names the parts.
    """
    fields = dataclasses.fields(vlm.model.config)
    parts = {field.name: getattr(getattr(vlm.model.config, field.name), "dtype", None) for field in fields}
    parts = {name: dtype for name, dtype in parts.items() if name != "vision" or in_vision}
    half = [name for name, dtype in parts.items() if dtype is not None and jnp.dtype(dtype) == jnp.float16]
    if half:
        raise UserError(
            f"config.dtype: {', '.join(half)} in float16, in which gradients underflow without loss scaling; train with"
            " --config.dtype=bfloat16"
        )


def in_vision(method: Any, frozen: Any) -> bool:
    """Whether a method acts inside the vision encoder; see `Inserts.in_vision`."""
    return jax.eval_shape(method.inserts, methods.shapes(method, frozen)).in_vision


def describe(config: ConfigDict, vlm: VLM) -> dict[str, str]:
    """What a run will do, for the table printed before it works."""
    method = methods.build(config.method, vlm.model.config, config.method_options)
    trainable = methods.shapes(method, vlm.params)
    devices, samples = jax.devices(), config.steps * config.batch_size
    mesh = "none" if vlm.mesh is None else " x ".join(f"{axis} {size}" for axis, size in vlm.mesh.shape.items())
    kept = "pictures" if in_vision(method, vlm.params) else "features"
    cached = f"{config.cache_images:,} scenes, {kept} cached" if config.cache_images else "scenes drawn anew"
    warmup = warmup_steps(config)
    rate = f"{config.schedule} {config.lr:g}" + (f" after {warmup:,} steps of warm-up" if warmup else "")
    return {
        "frozen": f"{count_parameters(vlm.params):,} parameters ({config.vlm}, {vlm.identity})",
        "trainable": f"{count_parameters(trainable):,} parameters ({config.method})",
        "data": f"{config.scenes.cutouts} on {config.scenes.backgrounds}; {cached}; {samples:,} samples",
        "steps": f"{config.steps:,} of {config.batch_size} images, rate {rate}",
        "devices": f"{len(devices)} x {devices[0].device_kind}, {launch.described()}; mesh {mesh}",
    }
