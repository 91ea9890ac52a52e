"""Shared by the configs: the schema, variants after the colon, and the paper's ablations."""
