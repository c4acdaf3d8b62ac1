"""Networks as `Model`s: `(vectors, num_classes, *, settings) -> Model`."""

from collections.abc import Callable

from distill_jax.models.adapters import from_linen, from_nnx
from distill_jax.models.bag import bag
from distill_jax.models.bilstm import bilstm
from distill_jax.models.fourier_bag import fourier_bag
from distill_jax.models.mean_cnn import mean_cnn
from distill_jax.models.text_cnn import kim_cnn, text_cnn
from distill_jax.models.transformer import transformer
from distill_jax.types import Model

MODELS: dict[str, Callable[..., Model]] = {
    "bag": bag,
    "bilstm": bilstm,
    "fourier_bag": fourier_bag,
    "kim_cnn": kim_cnn,
    "mean_cnn": mean_cnn,
    "text_cnn": text_cnn,
    "transformer": transformer,
}

__all__ = [
    "MODELS",
    "bag",
    "bilstm",
    "fourier_bag",
    "from_linen",
    "from_nnx",
    "kim_cnn",
    "mean_cnn",
    "text_cnn",
    "transformer",
]
