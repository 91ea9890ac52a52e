"""Cuts from CLIP's vocabulary (MIT, openai/CLIP, bpe_simple_vocab_16e6.txt.gz) what the golden texts need.

`python tests/golden/make_clip_bpe.py bpe_simple_vocab_16e6.txt.gz` writes clip_bpe/{vocab.json,merges.txt}: all single
bytes and every merge that happens on the way, ids unchanged. Merges that never happen change nothing on these texts.
"""

from __future__ import annotations

import gzip
import json
import pathlib
import re
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent


def byte_letters() -> tuple[list[str], dict[int, str]]:
    """Visible letters for bytes: in the order of CLIP's vocabulary, and by byte."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in visible]
    letters = {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(rest)}
    return [letters[b] for b in visible + rest], letters


def main(path: str) -> None:
    lines = gzip.open(path, "rt", encoding="utf-8").read().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    order, letters = byte_letters()
    tokens = order + [letter + "</w>" for letter in order] + ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    ids, rank = {token: i for i, token in enumerate(tokens)}, {pair: i for i, pair in enumerate(merges)}
    with np.load(HERE / "gem_inputs.npz") as file:
        texts = json.loads(str(file["tok/texts"]))
    used = set()
    for text in texts:
        for word in re.findall(r"\w+|[^\s\w]+", text.lower()):
            parts = [letters[b] for b in word.encode()]
            parts[-1] += "</w>"
            while pairs := [(rank[pair], i) for i, pair in enumerate(zip(parts, parts[1:])) if pair in rank]:  # noqa: B905
                best, i = min(pairs)
                used.add(best)
                parts[i : i + 2] = ["".join(merges[best])]
    kept = [merges[i] for i in sorted(used)]
    vocab = {token: ids[token] for token in tokens[:512] + ["".join(pair) for pair in kept] + tokens[-2:]}
    (HERE / "clip_bpe").mkdir(exist_ok=True)
    (HERE / "clip_bpe" / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False) + "\n", "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in kept)]
    (HERE / "clip_bpe" / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
