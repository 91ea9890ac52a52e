"""PIN in JAX: a small learned map that lets a frozen caption-trained VLM say where things are (CVPR 2024)."""
