"""What main.py says to a typo: one line that names the nearest right thing, and no traceback."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys

import pytest
from PIL import Image
from skimage import data

from configs import pin_blip2
from configs.lib import catalogue, pin, schema
from tests.fixtures.golden_files import ROOT

CONFIG = "--config=configs/pin_flamingo.py:tiny"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([CONFIG, "--workdir=w", "--config.stepz=3"], ["config.stepz", "did you mean --config.steps"]),
        ([CONFIG, "--workdir=w", "--config.eval.image=3"], ["config.eval.image", "did you mean --config.eval.images"]),
        ([CONFIG, "--workdir=w", "--config.lr=fast"], ["config.lr", "fast"]),
        ([CONFIG, "--workdir=w", "--config.steps=0"], ["config.steps 0", "from 1"]),
        (["--config=configs/pin_flamingo.py:tinny", "--workdir=w"], ["tinny", "tiny"]),
        (["--config=configs/pin_flamengo.py:tiny", "--workdir=w"], ["pin_flamengo", "configs/pin_flamingo.py"]),
        (
            ["--config=configs/pin_blip2.py:opt-2.7b", "--workdir=w"],
            ["config.scenes.cutouts is empty", "--config.scenes.cutouts=xpaste:pool.json", "docs/data.md"],
        ),
        (["--workdir=w"], ["--config is missing"]),
        ([CONFIG, "--workdir=w", "--wordir=w"], ["wordir"]),
        ([CONFIG, "--workdir=w", "train"], ["train", "not a flag"]),
    ],
)
def test_a_typo_is_one_line(flags, words, tmp_path):
    done = subprocess.run([sys.executable, "main.py", *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert not (ROOT / "w").exists()


def run(*flags: str, cwd=ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(ROOT / "main.py"), *flags], cwd=cwd, capture_output=True, text=True)


def test_alone_it_lists_what_there_is_to_run():
    listing = catalogue.of_all()
    for path in (ROOT / "configs").glob("*.py"):
        assert f"configs/{path.name}: " in listing
    assert ":opt-2.7b " in listing and "--config.run=inspect" in listing and "method=" in listing
    assert max(map(len, listing.splitlines())) < 140
    done = run()
    assert done.returncode == 0 and not done.stderr and done.stdout == listing + "\n"


def test_help_lists_the_entries_of_a_config():
    assert "--config.eval.length_penalty" in catalogue.of_config("configs/pin_flamingo.py", "tiny")


@pytest.mark.parametrize(
    ("path", "variant", "name"),
    [
        ("configs/pin_blip2.py", "", "pin_blip2-tiny"),
        ("configs/pin_blip2.py", "opt-2.7b,eval=coco:a/b.json", "pin_blip2-opt-2.7b,eval=coco_a_b.json"),
        ("configs/gem_clip.py", "", "gem_clip"),
        ("configs/prepare.py", "", "prepare"),
    ],
)
def test_a_run_without_a_workdir_has_one(path, variant, name):
    assert catalogue.workdir(path, variant) == pathlib.Path("runs", name)


def test_the_workdir_that_was_chosen_is_said(tmp_path):
    done = run(f"--config={ROOT / 'configs/prepare.py'}", "--config.cutouts=folder:none", cwd=tmp_path)
    assert done.returncode == 1 and "workdir: runs/prepare" in done.stdout, done.stderr


def test_the_published_recipe_is_the_base_and_tiny_what_differs():
    base, tiny = (dict(schema.entries(config)) for config in (pin.published(), pin.tiny("assets/tiny_blip2")))
    paper = {
        "batch_size": 64, "steps": 150_000, "lr": 1e-3, "schedule": "constant", "curriculum": 0.25,
        "scenes.objects": (1, 3), "scenes.smallest": (5, 3, 2), "scenes.crop": 1.0, "vary_backgrounds": 0.0,
        "scenes.exclude": ("@coco", "@voc"), "eval.decoder": "beam", "eval.beams": 3, "eval.new_tokens": 12,
        "eval.select.max_annotations": 3,
    }  # fmt: skip
    assert {key: base[key] for key in paper} == paper
    assert {key for key in base if base[key] != tiny[key]} == {
        "vlm", "dtype", "remat", "scenes.cutouts", "scenes.backgrounds", "scenes.smallest", "scenes.crop",
        "scenes.exclude", "vary_backgrounds", "curriculum", "questions_per_image", "text_length", "cache_images",
        "workers", "batch_size", "steps", "lr", "schedule", "save_every", "eval.images", "eval.decoder",
    }  # fmt: skip
    for variant in ("opt-2.7b", "flan-t5-xl"):
        own = dict(schema.entries(pin_blip2.get_config(variant)))
        assert {key for key in base if base[key] != own[key]} == {"vlm"}
    assert pin_blip2.get_config().vlm == "assets/tiny_blip2"


def test_configs_and_small_models_are_found_from_every_folder(tmp_path):
    """As the command `pin-gem`, which may be called anywhere."""
    flags = [
        "--config=configs/pin_flamingo.py:tiny",
        "--config.run=describe",
        "--config.steps=50",
        "--config.warmup=90",
    ]
    done = run(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "50 of 32 images" in done.stdout and "after 5 steps of warm-up" in done.stdout
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # it only says what it would do
    gone = run("--config=configs/nothing.py", cwd=tmp_path)
    assert gone.returncode == 1 and gone.stderr.startswith("error: --config=configs/nothing.py: no such file")


@pytest.mark.heavy
@pytest.mark.parametrize("python", ["python3.11", "python3.13"])
def test_an_installed_command_predicts(python, tmp_path):
    """`pip install -e .` in a new environment, then `pin-gem` from another folder."""
    if shutil.which(python) is None or subprocess.run([python, "-c", ""]).returncode:
        pytest.skip(f"no {python} here")
    where = tmp_path / "venv"
    subprocess.run([python, "-m", "venv", where], check=True)
    subprocess.run([where / "bin" / "pip", "install", "-q", "-e", ROOT], check=True)
    Image.fromarray(data.astronaut()).save(tmp_path / "photo.png")
    flags = ["--config=configs/pin_flamingo.py:tiny", "--config.run=predict", "--config.prompts=cat", "--workdir=out"]
    command = [where / "bin" / "pin-gem", *flags, "--config.image=photo.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "boxes.json").exists() and "cat: [" in done.stdout
