"""Answers in COCO's form carry what the decoder said of them."""

from __future__ import annotations

import json
import types

import numpy as np

from pin_jax.scoring import coco_files


def test_a_prediction_has_its_answer_score_and_place(tmp_path):
    record = {"image_id": 7, "names": ["cat", "dog"], "query_text": ["cat", "the dog"], "size": (80, 40)}
    record["boxes"] = np.array([[0, 0, 80, 80], [80, 0, 160, 160]], np.float32)
    answers = [
        types.SimpleNamespace(text=" [0,0,80,80]", box=np.array([0, 0, 80, 80.0]), parsed=True, score=0.25),
        types.SimpleNamespace(text=" no", box=np.array([0, 0, 160, 160.0]), parsed=False, score=0.5),
    ]
    coco_files.write(tmp_path, [record], answers, 160)
    cat, dog = json.loads((tmp_path / "predictions.json").read_text())
    assert (cat["score"], cat["parsed"], cat["query_text"], cat["bbox"]) == (0.25, True, "cat", [0, 0, 40, 20])
    assert (dog["score"], dog["parsed"], dog["text"], dog["bbox"]) == (0.5, False, " no", [0, 0, 80, 40])
    truth = json.loads((tmp_path / "ground_truth.json").read_text())["annotations"]
    assert truth[1]["bbox"] == [40, 0, 40, 40] and truth[1]["image_id"] == 7
