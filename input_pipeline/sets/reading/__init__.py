"""What the readers of the sets share: records, label maps, layouts on disk, masks, pickles of plain data."""
