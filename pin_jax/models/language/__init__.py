"""Language models: decoder-only ones around one decoder, and T5."""
