"""What main.py runs: train and evaluate a method, the PIN table, compilation for a TPU topology, data preparation."""
