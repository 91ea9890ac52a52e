"""What is trained: a method is parameters plus a pure function from them to `Inserts`; nothing else knows which."""

from pin_jax.methods.pin import Pin

METHODS = {"pin": Pin}
