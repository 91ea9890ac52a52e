"""The small CLIP that ships: what docs/gem.md says of it, on fewer scenes."""

from __future__ import annotations

import pytest

from configs import gem_clip
from gem_jax import pretrained, programs
from tests.fixtures.golden_files import ROOT


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    config = gem_clip.get_config("tiny")
    config.methods = ("clip", "maskclip", "clip_surgery", "gem", "gem temperature=10")
    config.eval.update({"seeds": (0,), "images": 48})
    model = pretrained.load(ROOT / config.model)
    return programs.evaluate(config, tmp_path_factory.mktemp("gem"), model)["table"]


@pytest.mark.parametrize("method", ["clip_surgery", "gem temperature=10"])
def test_a_second_stream_finds_what_plain_clip_does_not(table, method):
    assert table[method]["mIoU"] > table["clip"]["mIoU"] + 0.1
    assert table[method]["p-mIoU"] > table["clip"]["p-mIoU"] + 0.2
    assert table[method]["box mIoU"] > table["constant box"]["box mIoU"] + 0.03


def test_gem_s_own_temperature_is_clip_s(table):
    assert table["gem"]["mIoU"] > max(table["clip"]["mIoU"], table["maskclip"]["mIoU"]) + 0.05
    assert table["gem"]["p-mIoU"] > table["clip"]["p-mIoU"] + 0.2


def test_its_files_are_small():
    assert sum(p.stat().st_size for p in (ROOT / "assets" / "tiny_clip").iterdir()) < 20 * 2**20
