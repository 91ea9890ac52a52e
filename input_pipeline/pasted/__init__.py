"""Synthetic scenes: cut-outs pasted on backgrounds (PIN, section 3), and where both come from."""
