"""Decoding text and boxes: greedy and beam search, search on the grid of boxes, examples in context."""
