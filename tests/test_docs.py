"""What the documentation names exists: paths and functions, commands and their entries, links, Python blocks."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import shlex

import pytest
from PIL import Image

from configs.lib import catalogue, schema
from tests.fixtures.golden_files import ROOT

PAGES = {p.relative_to(ROOT).as_posix(): p.read_text("utf-8") for p in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
PACKAGES = "pin_jax|gem_jax|input_pipeline|configs|tests|benchmarks|docs|assets"
PATH = re.compile(rf"`((?:{PACKAGES})/[\w./]+)(?::([\w.]+))?`")

page = pytest.mark.parametrize("page", PAGES)


@functools.cache
def definitions(path: str) -> set[str]:
    """Names at the top of a file, and `Class.name` of what stands in its classes."""
    out = set()
    for node in ast.parse((ROOT / path).read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            out.add(node.name)
        if isinstance(node, ast.ClassDef):
            out |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        out |= {target.id for target in targets if isinstance(target, ast.Name)}
    return out


def is_config(path: str) -> bool:
    return path.startswith("configs/") and path.count("/") == 1


@page
def test_paths_and_names_exist(page):
    for path, name in PATH.findall(PAGES[page]):
        if "NAME" in path:
            continue
        assert (ROOT / path).exists(), path
        if name and is_config(path):
            catalogue.get_config(str(ROOT / path), name)
        elif name:
            assert name in definitions(path), f"{path}:{name}"


def commands(text: str) -> list[list[str]]:
    """The words of every `python main.py` and `python benchmarks/...`, in blocks and in lines."""
    text = re.sub(r"\\\n\s*", " ", text)
    blocks = re.findall(r"^```bash\n(.*?)^```|^ {4}([^\n]*)$", text, re.DOTALL | re.MULTILINE)
    inline = [" ".join(code.split()) for code in re.findall(r"`(python [^`]*)`", text)]
    lines = "\n".join(["".join(found) for found in blocks] + inline).splitlines()
    found = (re.search(r"(?<!PYTHONPATH=\. )python (main\.py|benchmarks/\S+\.py).*", line) for line in lines)
    return [shlex.split(match[0], comments=True) for match in found if match]


@page
def test_commands_are_understood(page):
    for words in commands(PAGES[page]):
        flags = [word for word in words[2:] if word.startswith("-")]
        if words[1] != "main.py":
            source = (ROOT / words[1]).read_text("utf-8")
            assert all(f'"{flag.partition("=")[0]}"' in source for flag in flags), words
            continue
        config = None
        for name, _, value in (flag.partition("=") for flag in flags):
            if name == "--config":
                path, _, variant = value.partition(":")
                config = catalogue.get_config(str(ROOT / path), variant)
            elif name.startswith("--config."):
                assert name.removeprefix("--config.") in {entry for entry, _ in schema.entries(config)}, words
            else:
                assert name in ("--workdir", "--help"), words


@page
def test_python_blocks_import_what_exists(page):
    for block in re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pin_jax":
                assert hasattr(importlib.import_module("pin_jax"), node.attr), node.attr


@page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGES[page]):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_the_python_blocks_of_the_readme_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    Image.new("RGB", (60, 40), "teal").save("photo.jpg")
    locate, heat_maps = re.findall(r"```python\n(.*?)```", PAGES["README.md"], re.DOTALL)
    exec(locate, {})
    assert "cat (" in capsys.readouterr().out and (tmp_path / "boxes.png").is_file()
    ours = {  # what ships, in place of the hub's
        '"openai/clip-vit-base-patch16"': '"assets/tiny_clip", templates=("A photo of {article} {}.",)',
        "remote control": "dog",
    }
    names: dict = {}
    exec(re.sub("|".join(ours), lambda found: ours[found[0]], heat_maps), names)
    assert names["heat"].shape == (1, 2, 448, 448) and len(names["found"][0].box) == 4


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 160
    for block in re.findall(r"```(?:python|bash)\n(.*?)```", PAGES["README.md"], re.DOTALL):
        assert len(block.splitlines()) <= 8
