"""A vision transformer for colour images, of any size; ViT-small is its default."""

from __future__ import annotations

import flax.linen as nn

from benchmarks.tasks.digits_vit import Block


class VisionTransformer(nn.Module):
    """Square patches, learned positions, pre-norm blocks, mean pooling.

    The defaults make about 21 million parameters (Dosovitskiy et al., 2021; the small one
    of Touvron et al., 2021), at 64 tokens for an image of 32 x 32.
    """

    patch: int = 4
    dim: int = 384
    depth: int = 12
    heads: int = 6
    mlp: int = 1536
    classes: int = 10

    @nn.compact
    def __call__(self, images):  # [batch, height, width, channels]
        height, width, channels = images.shape[1:]
        rows, columns, size = height // self.patch, width // self.patch, self.patch
        patches = images.reshape(-1, rows, size, columns, size, channels)
        patches = patches.transpose(0, 1, 3, 2, 4, 5)
        tokens = patches.reshape(-1, rows * columns, size**2 * channels)
        x = nn.Dense(self.dim, name="embed")(tokens)
        x = x + self.param("positions", nn.initializers.normal(0.02), (rows * columns, self.dim))
        for _ in range(self.depth):
            x = Block(self.dim, self.heads, self.mlp)(x)
        return nn.Dense(self.classes, name="head")(nn.LayerNorm()(x).mean(axis=1))
