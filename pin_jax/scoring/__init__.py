"""Scores of boxes, and the files, tables and figures that report them."""
