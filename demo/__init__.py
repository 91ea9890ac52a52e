"""The web page: PIN, GEM, plain CLIP and the raw VLM side by side on one's own photo or on pasted stickers."""
