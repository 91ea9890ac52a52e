"""OpenFlamingo's published weights: their rules, their language models' configs, and the loader of all pieces."""
