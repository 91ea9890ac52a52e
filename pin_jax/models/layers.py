"""Building blocks of every tower: dense layers, activations, and layers stacked on a leading axis."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float, Key, Shaped

from pin_jax.models import attention


def quick_gelu(x: Float[Array, " ..."]) -> Float[Array, " ..."]:
    """x * sigmoid(1.702 x): OpenAI CLIP's activation."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class Dense(nn.Dense):
    """A linear layer that may have a low-rank branch beside its kernel: y = x W + bias + drop(x) a b.

    The branch stands at the layer's place in the collection `lora` (`Inserts.lora`): a float[in, r], b float[r, out]
    and, while training with dropout, a random key and the rate. The product a b is never formed, so neither it nor a
    gradient of its size takes memory.
    """

    def __call__(self, inputs: jax.Array) -> jax.Array:
        y = super().__call__(inputs)
        if not self.has_variable("lora", "a"):
            return y
        a, b = (self.get_variable("lora", name) for name in "ab")
        x, a, b = promote_dtype(inputs, a, b, dtype=self.dtype or y.dtype)
        if self.has_variable("lora", "key"):
            x = dropped(self.get_variable("lora", "key"), self.get_variable("lora", "rate"), x)
        return y + x @ a @ b


def dropped(key: Key[Array, ""], rate: Float[Array, ""], x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    """Dropout whose rate is rounded to 1/256: a byte of randomness an element, not a word.

    On a CPU drawing the words would take longer than the layers that it is for.
    """
    cut = jnp.round(rate * 256)
    words = jax.random.bits(key, (*x.shape[:-1], -(-x.shape[-1] // 4)), jnp.uint32)
    drawn = rearrange(jax.lax.bitcast_convert_type(words, jnp.uint8), "... d b -> ... (d b)")[..., : x.shape[-1]]
    return jnp.where(drawn >= cut, x * (256 / (256 - cut)).astype(x.dtype), 0)


def dense(
    features: int, use_bias: bool = True, name: str | None = None, dtype: Any = None, accumulate: Any = None
) -> Dense:
    """A linear layer, initialised with the small normal that these architectures share.

    Args:
      dtype: of the computation. accumulate: of the result, in which the products are summed up too; dtype by default.
    """
    product = functools.partial(jax.lax.dot_general, preferred_element_type=accumulate) if accumulate else None
    init = nn.initializers.normal(0.02)
    return Dense(features, use_bias, dtype=dtype, kernel_init=init, dot_general=product, name=name)


def tied_head(x: Float[Array, "*rows D"], embedding: Float[Array, "V D"]) -> Float[Array, "*rows V"]:
    """Logits through the embedding, summed up in float32."""
    table = embedding.astype(x.dtype)
    return jnp.einsum("...d,vd->...v", x, table, preferred_element_type=jnp.float32)


class Apart:
    """The parameters of layers, each with arrays of its own, in the place of one stack of them: a node of pytrees.

    XLA copies a layer's weights out of a stack each time that it comes to them. Where one token at a time is written on
    a CPU, reading the weights is most of the work, and the copies double it.
    """

    def __init__(self, layers: Iterable[Any]):
        self._layers = tuple(layers)  # the class itself is no tuple: Flax makes plain ones of those it is given

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, i: int) -> Any:
        return self._layers[i]


jax.tree_util.register_pytree_node(Apart, lambda layers: (layers._layers, None), lambda _, layers: Apart(layers))


def apart(stack: Any) -> Apart:
    """Cuts a stack of layers, each leaf with a leading axis for them, into arrays of their own: twice the memory while
    the stack is kept."""
    return Apart(jax.tree.map(lambda x, i=i: x[i], stack) for i in range(len(jax.tree.leaves(stack)[0])))


def _of_layer(xs: Any, i: int) -> Any:
    """What stands for layer i in stacks and `Apart`s."""
    return jax.tree.map(lambda x: x[i], xs, is_leaf=_is_apart)


def _is_apart(node: Any) -> bool:
    return isinstance(node, Apart)


def stack(module: nn.Module, name: str, init: Callable[[Array], Any]) -> Any:
    """The variables of a module's stacked layers, each leaf with a leading axis for the layers: what a layer's `apply`
    takes, once it is cut along that axis. Layers that stand apart stay so.

    Parameters are made by `init(rng)`, or are what stands there; the collection `lora` is there where it has branches
    beside them.
    """
    # Not `module.param` for what stands there: it would trace `init` again for its shapes, which each layer checks.
    given = module.has_variable("params", name)
    variables = {"params": module.get_variable("params", name) if given else module.param(name, init)}
    if module.has_variable("lora", name):
        variables["lora"] = module.get_variable("lora", name)
    if _is_apart(variables["params"]):
        return Apart(_of_layer(variables, i) for i in range(len(variables["params"])))
    return variables


def stacked(make: Callable[..., nn.Module], length: int) -> tuple[nn.Module, Callable]:
    """`length` copies of a layer whose parameters stand on a leading axis, to be scanned.

    Args:
      make: builds the layer; called with `parent=None`, so that the layer is a pure function of its parameters.

    Returns:
      The layer, and an init function (rng, *inputs) -> parameters of shape [length, ...].
    """
    layer = make(parent=None)

    def init(rng: jax.Array, *args: Any, **kwargs: Any) -> Any:
        return jax.vmap(lambda key: layer.init(key, *args, **kwargs)["params"])(jax.random.split(rng, length))

    return layer, init


# What the backward pass keeps of a layer; the rest is computed again.
REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
}


def scan(body: Callable, carry: Any, xs: Any, *, unroll: bool, remat: bool | str = False) -> tuple[Any, Any]:
    """`jax.lax.scan` over stacked layers; those that stand `Apart` are laid out one by one.

    On a mesh the carried activations stay split by rows, which keeps XLA gathering weights instead.

    Args:
      unroll: lay the layers out one by one: faster for small models on a CPU, slower to compile.
      remat: what the backward pass computes again instead of keeping it: a key of `REMAT`; True is `full`.
    """

    def layer(carry, x):
        return body(jax.tree.map(by_rows, carry), x)

    policy = REMAT[remat if isinstance(remat, str) else "full" if remat else "none"]
    pieces = jax.tree.leaves(xs, is_leaf=_is_apart)
    watched, separate = attention.is_watched(), any(map(_is_apart, pieces))
    if policy is not None and not watched:
        layer = jax.checkpoint(layer, policy=policy, prevent_cse=unroll or separate)
    if watched or separate:
        outputs = []
        for i in range(len(pieces[0])):
            carry, y = layer(carry, _of_layer(xs, i))
            outputs.append(y)
        return carry, jax.tree.map(lambda *y: jnp.stack(y), *outputs)
    return jax.lax.scan(layer, carry, xs, unroll=True if unroll else 1)


ROWS = ("data", "fsdp")  # mesh axes that split a batch


def by_rows(x: Shaped[Array, " B *rest"]) -> Shaped[Array, " B *rest"]:
    """Keeps an activation split over the mesh by rows, where a mesh is set (`jax.set_mesh`)."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(ROWS) <= set(mesh.axis_names):
        return x
    parts = mesh.shape[ROWS[0]] * mesh.shape[ROWS[1]]
    if parts == 1 or x.shape[0] % parts:
        return x
    return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec(ROWS))


def unit_length(x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    """x / |x| over the last axis, at least in float32 inside; zero stays zero."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * jax.lax.rsqrt(jnp.maximum((wide * wide).sum(-1, keepdims=True), 1e-24))).astype(x.dtype)


def standardise(x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    """Zero mean and unit variance over the last axis: what a LayerNorm without parameters makes of an embedding."""
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)
