"""Makes the golden files of BLIP-2 from live torch: tiny random transformers models, every weight perturbed.

Run `python tests/golden/make_blip2.py` where torch and transformers are installed. Each file holds a checkpoint as
transformers saves it (`sd/KEY`, `config`: its config.json), inputs (`in/...`) and outputs (`out/...`): the three parts'
outputs, logits, loss, gradient with respect to an insert on the vision tokens, logits at another image size, greedy and
beam tokens. Texts have pads on the left, in the middle (a hole) and, for T5, on the right.
"""

from __future__ import annotations

import json
import pathlib
import tempfile

import numpy as np
import torch
import transformers
from safetensors.torch import load_file

VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 7}
QFORMER = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
OPT = {"model_type": "opt", "vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "ffn_dim": 48}
OPT |= {"num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 32}
T5 = {"model_type": "t5", "vocab_size": 48, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
T5 |= {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "tie_word_embeddings": False}
T5 |= {"decoder_start_token_id": 0, "relative_attention_max_distance": 24}
QUERIES, IMAGE, STEPS = 3, 47, 6
NAMES = ("blip2_opt", "blip2_t5")
END = {"blip2_opt": 45, "blip2_t5": 8}  # tokens that some beams write


def build(name: str, generator: torch.Generator) -> transformers.Blip2ForConditionalGeneration:
    """A tiny BLIP-2 with every weight moved."""
    config = transformers.Blip2Config(
        vision_config=VISION,
        qformer_config=QFORMER,
        text_config=OPT if name == "blip2_opt" else T5,
        num_query_tokens=QUERIES,
        image_token_index=IMAGE,
    )
    model = transformers.Blip2ForConditionalGeneration._from_config(config, attn_implementation="eager").float().eval()
    if name == "blip2_t5":  # transformers 5 ties T5's head on construction; BLIP-2's is a matrix of its own
        language = model.language_model
        language.lm_head.weight = torch.nn.Parameter(torch.empty_like(language.lm_head.weight))
        for part in (model.config, model.config.text_config, language.config):
            part.tie_word_embeddings = False
    with torch.no_grad():
        for parameter in model.parameters():  # norms start at 1 and 0, queries at 0: move every weight
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.2 + (1.0 if parameter.mean() > 0.9 else 0.0))
        if name == "blip2_opt":  # or every step writes the token that it has just read
            model.language_model.model.decoder.embed_positions.weight.mul_(8)
        else:  # T5's attention is unscaled: at this width its softmax would be all or nothing
            for key, parameter in model.language_model.named_parameters():
                if key.endswith("Attention.q.weight"):
                    parameter.mul_(0.3)
    return model


def texts(name: str) -> dict[str, np.ndarray]:
    """Rows of text, the masks over them, and labels (-100 where they do not count)."""
    image, pad = [IMAGE] * QUERIES, 1 if name == "blip2_opt" else 0
    if name == "blip2_opt":
        rows = [
            image + [2, 5, 6, 7, 8, 9, 10, 11],
            [pad, pad, *image, 2, 12, 13, 14, 15, 16],
            [*image, pad, pad, pad, 2, 17, 18, 19, 20],  # transformers' own batched layout: a hole
        ]
        labels = [[t if t not in (IMAGE, pad) else -100 for t in row] for row in rows]
    else:
        rows = [
            image + [5, 6, 7, 8, 9, 10, 11, 2],
            [pad, pad, *image, 12, 13, 14, 15, 16, 2],
            [*image, 17, 18, 19, 20, 2, pad, pad, pad],
        ]
        labels = [[21, 22, 23, 24, 1], [25, 26, 1, -100, -100], [27, 28, 29, 1, -100]]
    ids = np.array(rows)
    return {"in/input_ids": ids, "in/attention_mask": (ids != pad).astype(np.int64), "in/labels": np.array(labels)}


def checkpoint(model: transformers.PreTrainedModel) -> dict[str, np.ndarray]:
    """What transformers writes to disk."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        arrays = {f"sd/{k}": v.numpy() for k, v in load_file(f"{folder}/model.safetensors").items()}
        meta = json.loads((pathlib.Path(folder) / "config.json").read_text("utf-8"))
    return arrays | {"config": np.array(json.dumps(meta))}


def reference(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """A whole golden file."""
    generator = torch.Generator().manual_seed(seed)
    model = build(name, generator)
    arrays = checkpoint(model) | texts(name)
    pixels = torch.randn(3, 3, 28, 28, generator=generator)
    larger = torch.randn(3, 3, 42, 35, generator=generator)
    arrays |= {"in/pixels": pixels.numpy(), "in/larger": larger.numpy()}
    inputs = {k: torch.from_numpy(arrays[f"in/{k}"]) for k in ("input_ids", "attention_mask", "labels")}

    insert = torch.randn(17, 32, generator=generator).mul_(0.3).requires_grad_()
    arrays["in/insert"] = insert.detach().numpy().copy()
    hook = model.vision_model.post_layernorm.register_forward_hook(
        lambda module, args, out: out + insert if out.ndim == 3 else out
    )
    out = model(pixel_values=pixels, **inputs)
    out.loss.backward()
    arrays |= {"out/insert_logits": out.logits.detach().numpy(), "out/loss": out.loss.detach().numpy()}
    arrays["out/insert_gradient"] = insert.grad.numpy()
    hook.remove()
    with torch.no_grad():
        out = model(pixel_values=pixels, **inputs)
        arrays["out/logits"] = out.logits.numpy()
        arrays["out/vision"] = out.vision_outputs.last_hidden_state.numpy()
        arrays["out/queries"] = out.qformer_outputs.last_hidden_state.numpy()
        out = model(pixel_values=larger, interpolate_pos_encoding=True, **inputs)
        arrays["out/larger_vision"] = out.vision_outputs.last_hidden_state.numpy()
        generate = {"pixel_values": pixels, "max_new_tokens": STEPS}
        generate |= {k: inputs[k] for k in ("input_ids", "attention_mask")} | {"eos_token_id": END[name]}
        for penalty in (-1.0, 1.0):
            found = model.generate(**generate, num_beams=3, length_penalty=penalty, do_sample=False)
            arrays[f"out/beams{penalty:g}"] = found.numpy()
        arrays["out/greedy"] = model.generate(**generate, do_sample=False).numpy()
    return arrays


if __name__ == "__main__":
    for each in NAMES:
        path = pathlib.Path(__file__).with_name(f"{each}.npz")
        made = reference(each)
        np.savez_compressed(path, **made)
        print(path.name, path.stat().st_size, made["out/loss"])
        for key in ("out/greedy", "out/beams-1", "out/beams1"):
            print(key, made[key].tolist())
