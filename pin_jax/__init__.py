"""PIN in JAX: a small learned map that lets a frozen caption-trained VLM say where things are (CVPR 2024)."""


def __getattr__(name: str):
    """`load_vlm`, `load_adapter` and `locate`, imported when asked for: workers that prepare data import no JAX."""
    if name == "load_vlm":
        from pin_jax.vlm import load_vlm

        return load_vlm
    if name == "load_adapter":
        from pin_jax.adapters import load_adapter

        return load_adapter
    if name == "locate":
        from pin_jax.localisation import locate

        return locate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
