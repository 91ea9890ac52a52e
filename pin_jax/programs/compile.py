"""Ahead-of-time compilation for a TPU topology: memory and estimated time of a step (`config.run=compile`).

The train step and the decode step are lowered with shapes alone and compiled by libtpu for a described topology, on any
machine with a CPU. Nothing is run and no weights are read.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from input_pipeline.text.box_codec import BoxCodec
from pin_jax import methods, train, training_data
from pin_jax.decoding import search as decode
from pin_jax.runtime import files, flops, reporting, sharding, topology
from pin_jax.runtime.files import AnyPath
from pin_jax.vlm import VLM, skeleton
from pin_jax.weights import registry
from pin_jax.weights.parameters import count_parameters

EFFICIENCY = 0.5  # of the peak, that large matrix products reach within a whole step


def run(config: ConfigDict, workdir: AnyPath) -> dict[str, Any]:
    """Compiles both steps, prints what they take, and writes results.json."""
    devices, chip = topology.describe(config.topology)
    mesh = sharding.make_mesh(config.mesh, 0 if config.get("batch_per_device", 0) else config.batch_size, devices)
    config.batch_size = train.global_batch(config, mesh)
    results = {"config": json.loads(config.to_json_best_effort()), "versions": reporting.versions()}
    for name, key in (("train", "compile"), ("decode", "compile_decode")):
        if name not in config.compile_steps:
            continue
        results[key] = {"train": train_step, "decode": decode_step}[name](config, mesh, chip)
        files.write_json(workdir / "results.json", results)
        reporting.plan(f"{name} step of {config.vlm} on {config.topology}", _table(results[key]))
        if not results[key]["fits"]:
            needs = results[key]["hbm_per_device_bytes"] / 2**30
            reporting.say(
                f"does NOT fit: {needs:.1f} GiB a device, of {chip.hbm / 2**30:.0f}; take a larger slice with more"
                " config.mesh.fsdp, a smaller config.batch_size, or config.remat=full"
            )
    reporting.say(f"wrote {workdir / 'results.json'}")
    return results


def _table(row: dict[str, Any]) -> dict[str, str]:
    formats = {int: "{:,}", float: "{:,.3f}"}
    return {key: formats.get(type(value), "{}").format(value) for key, value in row.items()}


def _placed(tree: Any, places: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, places)


def _replicated(tree: Any, mesh: Mesh) -> Any:
    where = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)


def _rows(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.by_rows(mesh))


def _vlm(config: ConfigDict, mesh: Mesh | None, remat: str) -> tuple[VLM, Any, Any]:
    """A VLM without weights, their shapes, and how many tokens stand in front of a prompt."""
    model, dtypes, frame = registry.architecture(config.vlm, config.dtype, remat)
    size = model.config.vision.image_size
    vlm = VLM(model, None, None, BoxCodec(size), (0.5,) * 3, (0.5,) * 3, "", frame=frame, mesh=mesh)
    front = len(re.findall(r"<[^<>]+>", frame.prefix))  # special tokens alone
    return vlm, skeleton(model, dtypes), front


def _report(
    config: ConfigDict, mesh: Mesh, chip: topology.Chip, shapes: Any, rows: int, lowered: Any, begin: float,
    model_flops: int, executed: int, passes: int,
) -> dict[str, Any]:  # fmt: skip
    """Compiles, and gathers what the issue of a run is about.

    The estimate is the longest of three times that overlap: products at half the peak, reading the weights, and
    gathering them over `fsdp`; each is `passes` times the weights.
    """
    try:
        memory = lowered.compile().memory_analysis()
        hbm = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        hbm += memory.generated_code_size_in_bytes - memory.alias_size_in_bytes
        fits = hbm <= chip.hbm
    except jax.errors.JaxRuntimeError as error:  # XLA gives up on what does not fit
        hbm, fits = asked_for(str(error)), False
        if hbm is None:
            raise
    seconds = time.monotonic() - begin
    places = sharding.shardings(shapes, mesh, sharding.rules(config.rules))
    held = sharding.bytes_per_device(shapes, places)
    fsdp = mesh.shape["fsdp"]
    times = {
        "products": executed / mesh.size / chip.flops / EFFICIENCY,
        "reading": passes * held * fsdp / chip.hbm_rate,
        "gathering": passes * held * (fsdp - 1) / chip.link_rate,
    }
    return {
        "devices": mesh.size,
        "params": count_parameters(shapes),
        "global_batch": rows,
        "hbm_per_device_bytes": int(hbm),
        "fits": fits,
        "frozen_per_device_bytes": int(held),
        "flops_per_step": int(model_flops),
        "executed_flops_per_step": int(executed),
        "compile_seconds": seconds,
        "estimated_step_seconds": max(times.values()),
        "estimate_bound_by": max(times, key=lambda part: times[part]),
    }


def asked_for(message: str) -> float | None:
    """Bytes that XLA says it would need where it refuses to compile; None if the message says something else."""
    used = re.search(r"(?:Used |temporaries \()([\d.]+)([MGT])(?: of [\d.]+[MGT] hbm|\) exceeds)", message)
    return used and float(used[1]) * 2 ** {"M": 20, "G": 30, "T": 40}[used[2]]


def train_step(config: ConfigDict, mesh: Mesh, chip: topology.Chip) -> dict[str, Any]:
    """The train step with the vision encoder in it, at config.batch_size images."""
    begin = time.monotonic()

    def build(mesh: Mesh | None, remat: str):
        vlm, shapes, front = _vlm(config, mesh, remat)
        method = methods.build(config.method, vlm.model.config, config.method_options)
        tx = train.optimiser(config)
        state = jax.eval_shape(lambda: train.initial(method, tx, config.seed, shapes))
        batch = training_data.batch_shapes(config, vlm, front)
        return vlm, shapes, train.make_step(vlm, method, tx), state, batch

    vlm, shapes, step, state, batch = build(mesh, config.remat)
    frozen = _placed(shapes, sharding.shardings(shapes, mesh, sharding.rules(config.rules)))
    placed = {k: _rows(mesh, v.shape, v.dtype) for k, v in batch.items()}
    executed = flops.count_flops(step, state, shapes, batch)
    model_flops = executed
    if config.remat != "none":
        _, _, plain, _, _ = build(mesh, "none")
        model_flops = flops.count_flops(plain, state, shapes, batch)
    with sharding.on(mesh):
        lowered = step.lower(_replicated(state, mesh), frozen, placed)
    passes = 2 + (config.remat != "none")  # forward, again if recomputed, backward
    return _report(config, mesh, chip, shapes, config.batch_size, lowered, begin, model_flops, executed, passes)


def decode_step(config: ConfigDict, mesh: Mesh, chip: topology.Chip) -> dict[str, Any]:
    """Answering a batch of config.eval.batch_size questions a device, from the vision tokens to the last token."""
    begin = time.monotonic()
    vlm, shapes, front = _vlm(config, mesh, "none")
    rows = config.eval.batch_size * sharding.row_ways(mesh)
    options = vlm.model.config
    method = methods.build(config.method, options, config.method_options)
    inserts = jax.eval_shape(method.inserts, methods.shapes(method, shapes))
    more = 0 if inserts.vision_input is None else inserts.vision_input.shape[-2]  # they stay among the visual tokens
    length = front + training_data.planned_length(config) - config.eval.new_tokens
    vision = _rows(mesh, (rows, 1, options.media_tokens + more, options.vision.width), jnp.float32)
    ids, mask = _rows(mesh, (rows, length), jnp.int32), _rows(mesh, (rows, length), jnp.bool_)
    frozen = _placed(shapes, sharding.shardings(shapes, mesh, sharding.rules(config.rules)))
    beams = {"beams": config.eval.beams} if config.eval.decoder == "beam" else {}
    search = decode.beam if beams else decode.greedy
    extra = {"steps": config.eval.new_tokens, "suppress": vlm.suppressed} | beams
    inputs = (vlm.model, frozen, vision, ids, mask, _replicated(inserts, mesh))
    with sharding.on(mesh):
        lowered = search.lower(*inputs, **extra)
    executed = flops.count_flops(
        lambda *args: search(vlm.model, *args, **extra), *inputs[1:], trips=config.eval.new_tokens
    )
    passes = 1 + config.eval.new_tokens
    return _report(config, mesh, chip, shapes, rows, lowered, begin, executed, executed, passes)
