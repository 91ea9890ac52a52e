"""Data: cut-outs pasted on backgrounds, box text, and the grain pipeline that serves them."""
