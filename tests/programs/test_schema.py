"""Entries of a config: those that ship pass, each has its line in the schema, and one that cannot be is named."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from ml_collections import ConfigDict

from configs import gem_clip, pin_blip2, pin_flamingo, pin_table, prepare, tiny_clip, tiny_vlm
from configs.lib import catalogue, schema
from input_pipeline.errors import UserError
from pin_jax import methods
from pin_jax.decoding import grid
from pin_jax.models import clip, layers
from pin_jax.models.attention import ATTENTION
from tests.fixtures.golden_files import ROOT


def given(config):
    """With the data that a published variant demands."""
    if config.program == "pin":
        config.scenes.update({"cutouts": "xpaste:pool.json", "backgrounds": "folder:bg20k"})
    return config


def every_config():
    """Each config file with each of its variants, and some with choices."""
    for path in sorted((ROOT / "configs").glob("*.py")):
        module = catalogue.load(path)
        if not hasattr(module, "get_config"):
            continue
        choices = getattr(module, "CHOICES", {})
        more = ["eval=pvoc"] if "eval" in choices else []
        more += [f"method={name}" for name in (*methods.METHODS, "pin+lora_v")] if "method" in choices else []
        more += ["referrals=on", "objects=5,grid=8"] if "objects" in choices else []
        for variant in (*getattr(module, "VARIANTS", ("",)), *more):
            yield pytest.param(path, variant, id=f"{path.stem}:{variant}")


@pytest.mark.parametrize(("path", "variant"), list(every_config()))
def test_every_entry_of_every_config_is_in_the_schema_and_passes(path, variant):
    config = given(catalogue.get_config(path, variant))
    schema.check(config)
    known = schema.program(config.program)
    for name, value in schema.entries(config):
        if schema.find(known, name) or not schema.is_empty_part(known, name, value):
            entry = schema.find(known, name)
            assert entry.help and entry.expected, name
            assert entry is not schema.PIN["method_options.*"], f"{name}: no line of its own"


def test_words_that_the_code_knows():
    assert set(schema.ACTIVATIONS) == set(layers.ACTIVATIONS)
    assert set(schema.POOLS) == set(clip.POOLS)
    assert set(schema.DECODERS) == {"greedy", "beam", *grid.DECODERS}
    assert schema.PIN["attention"].accepts("xla") and set(ATTENTION) == {"xla", "cudnn"}


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("module", "changes", "words"),
    [
        (pin_flamingo, {"steps": 0}, "config.steps 0: expected a whole number from 1 to"),
        (pin_flamingo, {"lr": -1e-3}, "config.lr -0.001: expected a number above 0"),
        (pin_flamingo, {"lr": NAN}, "config.lr nan: expected a number above 0"),
        (pin_flamingo, {"seed": -1}, "config.seed -1: expected a whole number from 0"),
        (pin_flamingo, {"cache_images": -1}, "config.cache_images -1"),
        (pin_flamingo, {"curriculum": 1.5}, "config.curriculum 1.5: expected a number from 0 to 1"),
        (pin_flamingo, {"eval.batch_size": 0}, "config.eval.batch_size 0"),
        (pin_flamingo, {"batch_size": 10**12}, "config.batch_size 1000000000000: expected a whole number from 1 to"),
        (pin_flamingo, {"text_length": 10**6}, "config.text_length 1000000: expected"),
        (pin_flamingo, {"eval.images": 0}, "config.eval.images 0: expected above 0; only of a published set 0 is all"),
        (pin_flamingo, {"eval.context": (2, -1)}, r"config.eval.context \(2, -1\)"),
        (pin_flamingo, {"eval.decoder": "beams"}, "config.eval.decoder 'beams': expected one of greedy, beam,"),
        (pin_flamingo, {"scenes.crop": 40.0}, "config.scenes.crop 40.0: expected a number from 0 to 1"),
        (pin_flamingo, {"scenes.objects": (0, 0)}, r"config.scenes.objects \(0, 0\): expected two whole numbers"),
        (pin_flamingo, {"scenes.objects": (3, 1)}, r"config.scenes.objects \(3, 1\).*second not below the first"),
        (pin_flamingo, {"scenes.objects": (1,)}, r"config.scenes.objects \(1,\)"),
        (pin_flamingo, {"scenes.objects": ("a", "b")}, r"config.scenes.objects \('a', 'b'\)"),
        (pin_flamingo, {"scenes.smallest": ()}, r"config.scenes.smallest \(\)"),
        (pin_flamingo, {"scenes.smallest": (16,)}, r"config.scenes.smallest \(16,\): expected .* from 1 to 15"),
        (pin_flamingo, {"grid": 1}, "config.grid 1: expected 0, or a whole number from 2"),
        (pin_flamingo, {"grid": 4}, r"config.scenes.smallest \(5, 4, 4\): expected .* from 1 to 3"),
        (pin_flamingo, {"method_options.hidden": ("a",)}, r"config.method_options.hidden \('a',\)"),
        (pin_flamingo, {"rules": (("(", ("data",)),)}, "config.rules"),
        (pin_flamingo, {"mesh.data": 0}, "config.mesh.data 0: expected -1, or a whole number from 1"),
        (pin_flamingo, {"program": "pins"}, "config.program 'pins': expected one of pin, pin_table"),
        (pin_table, {"models": ""}, "config.models ''"),
        (pin_table, {"seeds": ()}, r"config.seeds \(\)"),
        (pin_table, {"seeds": (1.5,)}, r"config.seeds \(1.5,\): expected a tuple of 1 to 64, each a whole number"),
        (pin_table, {"seeds": ("a",)}, "config.seeds"),
        (pin_table, {"model_steps.blip2": 0}, "config.model_steps.blip2 0"),
        (gem_clip, {"batch_size": 0}, "config.batch_size 0"),
        (gem_clip, {"box_threshold": NAN}, "config.box_threshold nan: expected a number from 0 to 1"),
        (gem_clip, {"background_threshold": 5.0}, "config.background_threshold 5.0"),
        (gem_clip, {"temperature": INFINITE}, "config.temperature inf"),
        (gem_clip, {"size": (224, 0)}, r"config.size \(224, 0\)"),
        (gem_clip, {"methods": ("gems",)}, "config.methods 'gems': expected one of clip, maskclip"),
        (gem_clip, {"templates": ("{0.__class__}",)}, "config.templates"),
        (gem_clip, {"templates": ("{} and {}",)}, "config.templates"),
        (gem_clip, {"templates": ("a {} in {place}",)}, "config.templates"),
        (gem_clip, {"templates": ("{} {",)}, "config.templates"),
        (gem_clip, {"templates": ("{!r}",)}, "config.templates"),
        (gem_clip, {"templates": ("{:>9999999999}",)}, "config.templates"),
        (tiny_vlm, {"language_batch": -2}, "config.language_batch -2"),
        (tiny_clip, {"embed": -3}, "config.embed -3"),
        (tiny_clip, {"vision.depth": -1}, "config.vision.depth -1"),
        (tiny_clip, {"vision.act": "foo"}, "config.vision.act 'foo': expected one of quick_gelu"),
        (tiny_clip, {"vision.patch": 7}, "config.vision.image_size 160: patch 7 does not divide it"),
        (tiny_clip, {"vision.heads": 5}, "config.vision: 5 heads do not divide the width, 192"),
        (tiny_clip, {"grid": 7}, "config.vision.image_size 160: grid 7 does not divide it"),
        (prepare, {"threads": 0}, "config.threads 0"),
        (prepare, {"exclude": (1,)}, r"config.exclude \(1,\)"),
        (prepare, {"side": 10**8}, "config.side 100000000"),
    ],
)
def test_an_entry_that_cannot_be_is_named(module, changes, words):
    config = module.get_config()
    if "program" in changes:
        config.program = changes["program"]
    else:
        config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=words) as caught:
        schema.check(config)
    assert "\n" not in str(caught.value)


def test_entries_of_lists_are_checked_in_their_place():
    config = tiny_vlm.get_config()
    config.vision_fits[1]["phases"][0]["batch"] = 0
    with pytest.raises(UserError, match="config.vision_fits.1.phases.0.batch 0: expected"):
        schema.check(config)


def test_an_entry_that_no_program_reads_is_refused():
    config = pin_flamingo.get_config()
    config.eval.imagez = 3
    with pytest.raises(UserError, match="config.eval.imagez: no entry of the program pin; did you mean"):
        schema.check(config)


def test_an_entry_that_is_missing_is_named():
    for module, path in ((pin_flamingo, "eval.beams"), (gem_clip, "scenes.cutouts"), (tiny_clip, "vision.patch")):
        config = module.get_config()
        *above, last = path.split(".")
        del config[above[0]][last]
        with pytest.raises(UserError, match=f"config.{path} is missing: expected"):
            schema.check(config)
    config = pin_flamingo.get_config()
    config.eval = ConfigDict()
    with pytest.raises(UserError, match="config.eval.* is missing"):
        schema.check(config)


def test_a_part_in_the_place_of_an_entry_is_refused():
    for path, value in (("steps", ConfigDict()), ("vision", ConfigDict({"width": 3})), ("scenes", 5), ("program", [])):
        config = pin_flamingo.get_config()
        with config.ignore_type():
            config[path] = value
        with pytest.raises(UserError, match=f"config.{path}"):
            schema.check(config)


def test_options_of_a_method_of_ones_own_pass():
    config = pin_flamingo.get_config()
    config.method, config.method_options = "mine:Method", {"gain": 2.0, "names": ("a", "b")}
    schema.check(config)


def test_a_size_of_two_sides_is_taken():
    config = gem_clip.get_config("tiny")
    config.size = (96, 160)
    schema.check(config)


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
            schema.check(config)
        config.scenes[entry] = example
    schema.check(config)
