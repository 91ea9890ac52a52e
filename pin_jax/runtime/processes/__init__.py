"""Processes of a run: how a launcher's are found, how they end together, and the folder that they share."""
