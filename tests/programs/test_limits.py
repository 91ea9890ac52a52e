"""Numbers of a config: the shipped configs pass, and a wrong one is named in one line."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from configs import gem_clip, pin_blip2, pin_flamingo, pin_table, prepare, tiny_clip, tiny_vlm
from configs.lib import limits
from input_pipeline.errors import UserError


def given(config):
    """With the data that a published variant demands."""
    config.scenes.update({"cutouts": "xpaste:pool.json", "backgrounds": "folder:bg20k"})
    return config


@pytest.mark.parametrize(
    "config",
    [
        pin_flamingo.get_config("tiny"), given(pin_flamingo.get_config("3b")),
        given(pin_flamingo.get_config("9b,eval=coco")),
        pin_blip2.get_config("tiny"), given(pin_blip2.get_config("opt-2.7b,curriculum=on")),
        pin_table.get_config(), pin_table.get_config("full"), pin_table.get_config("smoke"),
        gem_clip.get_config("tiny"), gem_clip.get_config("eval=voc"), tiny_clip.get_config("smoke"),
        tiny_vlm.get_config(), tiny_vlm.get_config("blip2"), tiny_vlm.get_config("perceiver_smoke"),
        prepare.get_config(),
    ],
)  # fmt: skip
def test_the_configs_that_ship_pass(config):
    limits.check(config)


@pytest.mark.parametrize(
    ("module", "changes", "words"),
    [
        (pin_flamingo, {"steps": 0}, "config.steps 0: expected above 0"),
        (pin_flamingo, {"lr": -1e-3}, "config.lr -0.001: expected above 0"),
        (pin_flamingo, {"seed": -1}, "config.seed -1: expected 0 or above"),
        (pin_flamingo, {"cache_images": -1}, "config.cache_images -1: expected 0 or above"),
        (pin_flamingo, {"curriculum": 1.5}, "config.curriculum 1.5: expected a share, from 0 to 1"),
        (pin_flamingo, {"eval.batch_size": 0}, "config.eval.batch_size 0"),
        (pin_flamingo, {"eval.images": 0}, "config.eval.images 0: expected above 0; only of a published set 0 is all"),
        (pin_flamingo, {"eval.context": (2, -1)}, r"config.eval.context \(2, -1\)"),
        (pin_flamingo, {"scenes.crop": 40.0}, "config.scenes.crop 40.0: expected a share"),
        (pin_table, {"models": ""}, "config.models is empty"),
        (pin_table, {"seeds": ()}, "config.seeds is empty"),
        (pin_table, {"model_steps.blip2": 0}, "config.model_steps.blip2 0: expected above 0"),
        (gem_clip, {"batch_size": 0}, "config.batch_size 0"),
        (tiny_vlm, {"language_batch": -2}, "config.language_batch -2"),
    ],
)
def test_a_number_that_cannot_be_is_named(module, changes, words):
    config = module.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=words):
        limits.check(config)


@pytest.mark.parametrize(
    ("run", "source", "context", "refused"),
    [
        ("train", "pvoc", (), True), ("evaluate", "scenes", (), True), ("evaluate", "pvoc", (2,), True),
        ("inspect", "scenes", (), True), ("evaluate", "pvoc", (), False), ("predict", "scenes", (2,), False),
        ("compile", "scenes", (2,), False),
    ],
)  # fmt: skip
def test_published_variants_demand_their_data(run, source, context, refused):
    config = pin_blip2.get_config("opt-2.7b")
    config.run, config.eval.source, config.eval.context = run, source, context
    for entry, example in (("cutouts", "xpaste:pool.json"), ("backgrounds", "folder:bg20k")):
        with pytest.raises(UserError, match=f"scenes.{entry} is empty.*{example}") if refused else nullcontext():
            limits.check(config)
        config.scenes[entry] = example
    limits.check(config)
