"""The PIN table: what it runs, what it does not run again, what it writes. The rows' own runs are tested elsewhere."""

from __future__ import annotations

import json
import pathlib
import types

import numpy as np
import pytest
from PIL import Image

from configs import pin_blip2, pin_flamingo, pin_table
from input_pipeline.errors import UserError
from pin_jax import evaluate
from pin_jax.models.interface import Inserts
from pin_jax.programs import table
from pin_jax.runtime import files
from pin_jax.scoring import figures, inspection
from pin_jax.scoring.queries import Query

KEYS = {"mIoU", "mIoU_M", "mIoU_L", "std", "unparsed", "parameters", "lr", "seconds"}


@pytest.fixture
def ran(monkeypatch):
    """Rows that are 'run' leave made-up scores; the list says which were."""
    done = []

    def scores(value: float) -> dict:
        return {"mIoU": value, "mIoU_M": value / 2, "mIoU_L": value + 0.1, "unparsed": 0.0, "queries": 4}

    def train_row(config, folder):
        done.append((config.vlm, config.method, config.seed, config.lr, config.steps, config.cache_folder))
        folder.mkdir(parents=True, exist_ok=True)
        value = 0.5 + 0.1 * config.seed + 0.05 * (config.method == "pin")
        value -= abs(config.lr - {"coop": 0.001, "pin": 0.01}[config.method]) * ("sweep" in str(folder))
        seconds = {"training": 2.0, "evaluation": 1.0}
        extra = {"config": json.loads(config.to_json_best_effort()), "seconds": seconds}
        files.write_json(folder / "results.json", {config.method: scores(value), **extra})
        files.write_json(folder / "insert.json", {"parameters": 7, "frozen": config.vlm})

    def frozen(config, folder):
        done.append((config.vlm, "frozen", config.eval.context_seed))
        folder.mkdir(parents=True, exist_ok=True)
        rows = {name: scores(0.1) for name in ("2_context", "raw", "constant", "random")}
        rows["10_context"] = dict.fromkeys(scores(0.1))
        extra = {"config": json.loads(config.to_json_best_effort()), "seconds": {"evaluation": 5.0}}
        files.write_json(folder / "results.json", rows | extra)

    monkeypatch.setattr(table.pin, "run", train_row)
    monkeypatch.setattr(table, "frozen_rows", frozen)
    return done


def small(**changes):
    config = pin_table.get_config("smoke")
    config.models, config.methods, config.seeds = "blip2,flamingo", "coop,pin", (0, 1)
    config.update(changes)
    return config


def test_rows_files_and_going_on(ran, tmp_path):
    config = small(rates={"coop": 0.5})
    table.run(config, tmp_path)
    assert len(ran) == 2 * 2 * 3  # models, seeds, rows
    assert ("assets/tiny_blip2", "coop", 1, 0.5, 4, str(tmp_path / "cache")) in ran
    assert ("assets/tiny_blip2", "frozen", 0) in ran and ("assets/tiny_blip2", "frozen", 1) in ran
    assert ("assets/tiny_flamingo", "pin", 0, 1.5e-3, 4, str(tmp_path / "cache")) in ran
    written = json.loads((tmp_path / "table.json").read_text())
    assert set(written) == {"blip2", "flamingo"}
    for rows in (own["rows"] for own in written.values()):
        assert list(rows) == ["raw", "random", "constant", "2_context", "10_context", "coop", "pin"]
        assert all(set(row) == KEYS for row in rows.values())
        assert rows["pin"]["mIoU"] == pytest.approx(0.6) and rows["pin"]["std"] == pytest.approx(0.05)
        assert rows["pin"]["parameters"] == 7 and rows["pin"]["seconds"] == 3 and rows["raw"]["parameters"] == 0
        assert rows["10_context"]["mIoU"] is None
    text = (tmp_path / "table.md").read_text()
    assert "| pin | 0.600 | 0.300 | 0.700 | 0.050 | 0.000 | 7 | 0.0015 | 3 | 0.45 / 0.27 / 0.62 |" in text
    assert "| 10_context | - |" in text and "0.5 for coop" in text
    assert Image.open(tmp_path / "table.png").width > 500
    ran.clear()
    (tmp_path / "flamingo" / "seed_1" / "pin" / "results.json").unlink()
    (tmp_path / "flamingo" / "seed_1" / "pin" / "insert.json").unlink()
    (tmp_path / "flamingo" / "seed_1" / "pin").rmdir()
    table.run(config, tmp_path)
    assert [row[:3] for row in ran] == [("assets/tiny_flamingo", "pin", 1)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 5}, r"seed_0/coop belongs to another config: steps 4 there, 5 here; choose another --workdir"),
        ({"rates": {"pin": 0.5}}, r"seed_0/pin belongs to another config: lr 0.0002 there, 0.5 here"),
        ({"eval_images": 5}, r"seed_0/frozen belongs to another config: eval.images 4 there, 5 here"),
        ({"context": (3,)}, r"seed_0/frozen belongs to another config: eval.context \[2\] there, \[3\] here"),
    ],
)
def test_rows_of_another_budget_are_not_mixed_in(ran, tmp_path, changes, words):
    table.run(small(), tmp_path)
    ran.clear()
    with pytest.raises(UserError, match=words):
        table.run(small(seeds=(2, 0), **changes), tmp_path)
    assert not ran  # not even those of the new seed


def test_rows_on_other_frozen_weights_are_not_mixed(ran, tmp_path):
    table.run(small(seeds=(0,)), tmp_path)
    for card in tmp_path.glob("flamingo/*/*/insert.json"):
        card.write_text(json.dumps({"parameters": 7, "frozen": "older"}))
    done = len(ran)
    with pytest.raises(UserError, match="seed_1/coop .*frozen 'assets/tiny_flamingo' there, 'older' here"):
        table.run(small(), tmp_path)
    assert len(ran) - done == 3 + 2  # all of blip2; of flamingo the frozen rows and coop
    with pytest.raises(UserError, match="frozen"):
        table.run(small(), tmp_path)
    assert len(ran) - done == 5  # and nothing runs any more


def test_steps_of_a_single_model(ran, tmp_path):
    table.run(small(model_steps={"blip2": 2}), tmp_path)
    assert {row[4] for row in ran if row[0] == "assets/tiny_blip2" and row[1] != "frozen"} == {2}
    assert {row[4] for row in ran if row[0] == "assets/tiny_flamingo" and row[1] != "frozen"} == {4}
    written = json.loads((tmp_path / "table.json").read_text())
    assert "2 steps a method; learning rate 0.0002;" in written["blip2"]["about"]
    assert "4 steps a method; learning rate 0.0015;" in written["flamingo"]["about"]


def test_each_method_gets_the_best_rate_of_a_sweep_on_other_scenes(ran, tmp_path):
    sweep = {"rates": (0.1, 0.001, 0.01), "steps": 2, "images": 3, "seed": 77}
    config = small(models="blip2", sweep=sweep)
    table.run(config, tmp_path)
    tried, rows = ran[:6], [row for row in ran[6:] if row[1] != "frozen"]
    assert {row[1:5] for row in tried} == {(m, 0, rate, 2) for m in ("coop", "pin") for rate in sweep["rates"]}
    row = json.loads((tmp_path / "blip2/sweep/pin_0.01/results.json").read_text())["config"]
    assert (row["eval"]["seed"], row["eval"]["images"]) == (77, 3)
    assert {(row[1], row[3]) for row in rows} == {("coop", 0.001), ("pin", 0.01)}  # as `ran` scores them
    written = json.loads((tmp_path / "table.json").read_text())["blip2"]
    assert written["rows"]["pin"]["lr"] == 0.01 and "of 0.1, 0.001, 0.01 the best after 2 steps" in written["about"]
    done = len(ran)
    table.run(config, tmp_path)
    assert len(ran) == done
    with pytest.raises(UserError, match="config.sweep.seed 1000000: these are the table's own scenes"):
        table.run(small(models="blip2", sweep=sweep | {"seed": 1_000_000}), tmp_path / "other")


def test_models_that_are_not_run_stay_in_a_table(ran, tmp_path):
    out = str(tmp_path / "kept")
    table.run(small(models="flamingo", out=out), tmp_path / "a")
    before = json.loads((tmp_path / "kept.json").read_text())
    table.run(small(models="blip2", out=out), tmp_path / "b")
    after = json.loads((tmp_path / "kept.json").read_text())
    assert set(after) == {"flamingo", "blip2"} and after["flamingo"] == before["flamingo"]
    text = (tmp_path / "kept.md").read_text()
    assert "**blip2**" in text and "**flamingo**" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": "flamengo"}, "config.models 'flamengo': expected some of blip2, flamingo"),
        ({"methods": "pin,lora"}, "did you mean lora_v"),
        ({"overrides": {"stepz": 3}}, "config.overrides 'stepz'"),
        ({"configs": {"blip2": "configs/nowhere.py:tiny"}}, "configs/nowhere.py"),
    ],
)
def test_typos_are_found_before_anything_runs(ran, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        table.run(small(**changes), tmp_path)
    assert not ran


def test_the_paper_s_figures_are_those_of_the_spec():
    assert table.PAPER["flamingo"]["pin"] == (0.45, 0.27, 0.62) and table.PAPER["blip2"]["pin"] == (0.44, 0.24, 0.63)
    assert set(table.PAPER["flamingo"]) | {"constant"} == set(table.ORDER)


def test_ablations_are_variants():
    config = pin_flamingo.get_config("tiny,depth=3,positions=learned,objects=5,curriculum=on,referrals=on")
    plain = pin_flamingo.get_config("tiny")
    assert config.method_options.to_dict() == {"learned": True, "hidden": (512, 768, 768)}
    assert config.train_scenes.to_dict() == {"objects": (1, 5), "twins": 0.5, "absolute_share": 0.3}
    assert config.curriculum == 0.25 and config.text_length > plain.text_length
    assert config.scenes == plain.scenes and config.eval == plain.eval  # the test stays the same
    assert pin_flamingo.get_config("grid=8").scenes.smallest == (2, 2, 2)
    both = pin_blip2.get_config("opt-2.7b,depth=1,method=pin+lora_v")
    assert both.vlm == "Salesforce/blip2-opt-2.7b" and both.method_options.pin.hidden == (768,)
    assert both.method_options.lora_v.rank == 8
    for wrong, words in {
        "tiny,metod=x": "'metod=x' is no choice", "depth=9": "depth=9: expected one of 0, 1, 2, 3",
        "method=lora": "did you mean lora_v", "method=coop,depth=1": "'coop' has no insert", "tiny,3b": "beside 'tiny'",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=words):
            pin_flamingo.get_config(wrong)


def test_a_text_beyond_the_positions_is_refused():
    config = types.SimpleNamespace(lm=types.SimpleNamespace(positions=40))
    vlm = types.SimpleNamespace(model=types.SimpleNamespace(config=config))
    evaluate._check_length(vlm, 28, Inserts())
    with pytest.raises(UserError, match="texts of 41 tokens: this language model has 40 positions"):
        evaluate._check_length(vlm, 29, Inserts())
    with pytest.raises(UserError):
        evaluate._check_length(vlm, 28, Inserts(text=np.zeros((1, 4))))


def test_components_find_what_was_put_in():
    rng = np.random.default_rng(0)
    rows, columns = np.meshgrid(np.arange(4.0), np.arange(4.0), indexing="ij")
    axes = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    psi = 3 * (rows.reshape(-1, 1) - 1.5) * axes[0] + (columns.reshape(-1, 1) - 1.5) * axes[1] + 7
    maps, shares = inspection.components(np.concatenate([np.full((1, 6), 99.0), psi]))  # a class token in front
    np.testing.assert_allclose(shares[:2], [0.9, 0.1], atol=1e-6)
    np.testing.assert_allclose(np.abs(maps[0]), np.abs(3 * (rows - 1.5)), atol=1e-9)
    np.testing.assert_allclose(np.abs(maps[1]), np.abs(columns - 1.5), atol=1e-9)
    assert all(m.ravel()[np.abs(m).argmax()] > 0 for m in maps[:2])


def test_where_errors_lie(tmp_path: pathlib.Path):
    """Four queries by hand, in images of 112 px: right, on the other object, on nothing, and alone in its image."""
    a, b = np.array([0.0, 0, 40, 40]), np.array([60.0, 60, 112, 112])
    asked = [Query(0, "x", a, b[None]), Query(0, "y", b, a[None]), Query(1, "x", a, b[None]),
             Query(2, "z", b, np.zeros((0, 4)))]  # fmt: skip
    found = inspection.errors(asked, np.stack([a, a, np.array([40.0, 0, 60, 20]), b]), 112)
    assert found["confusion"] == {"asked": 1 / 3, "other": 1 / 3, "both alike": 0.0, "none": 1 / 3}
    assert found["objects"] == {"1": {"mIoU": 1.0, "queries": 1}, "2": {"mIoU": pytest.approx(1 / 3), "queries": 3}}
    assert found["position"][0][0] == {"mIoU": 0.5, "queries": 2}
    assert found["position"][2][2]["queries"] == 2 and found["position"][1][1] == {"mIoU": None, "queries": 0}
    assert found["size"]["64-96"] == {"mIoU": 0.5, "queries": 2} and found["size"]["96-128"]["queries"] == 2
    assert sum(row["queries"] for row in found["size"].values()) == 4
    insert = {"explained": [0.5, 0.3, 0.1]}
    figures.inspection(tmp_path / "a.png", "pin", {"errors": found, "insert": insert}, np.random.rand(3, 4, 4))
    figures.inspection(tmp_path / "b.png", "coop", {"errors": found}, None)
    assert Image.open(tmp_path / "a.png").width > 1000 and (tmp_path / "b.png").stat().st_size > 1000
