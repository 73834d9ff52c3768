"""The transformers of the tasks: one block, and what makes it one of images or of tokens."""

import flax.linen as nn
import jax.numpy as jnp


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    heads: int
    mlp: int
    causal: bool = False

    @nn.compact
    def __call__(self, x):  # [batch, tokens, dim]
        tokens, dim = x.shape[-2:]
        split = (*x.shape[:-1], self.heads, dim // self.heads)
        qkv = nn.Dense(3 * dim, name="qkv")(nn.LayerNorm()(x))
        q, k, v = (part.reshape(split) for part in jnp.split(qkv, 3, axis=-1))
        mask = jnp.tril(jnp.ones((tokens, tokens), bool)) if self.causal else None
        mixed = nn.dot_product_attention(q, k, v, mask=mask).reshape(x.shape)
        x = x + nn.Dense(dim, name="out")(mixed)
        hidden = nn.gelu(nn.Dense(self.mlp, name="up")(nn.LayerNorm()(x)))
        return x + nn.Dense(dim, name="down")(hidden)


class VisionTransformer(nn.Module):
    """Square patches, learned positions, mean pooling.

    The defaults are ViT-small for images of 32 x 32: 64 tokens, about 21 million parameters
    (Dosovitskiy et al., 2021; the small one of Touvron et al., 2021).
    """

    patch: int = 4
    dim: int = 384
    depth: int = 12
    heads: int = 6
    mlp: int = 1536
    classes: int = 10

    @nn.compact
    def __call__(self, images):  # [batch, height, width], or with channels behind
        height, width, channels = (*images.shape[1:], 1)[:3]
        rows, columns, size = height // self.patch, width // self.patch, self.patch
        patches = images.reshape(-1, rows, size, columns, size, channels)
        patches = patches.transpose(0, 1, 3, 2, 4, 5)
        tokens = patches.reshape(-1, rows * columns, size**2 * channels)
        x = nn.Dense(self.dim, name="embed")(tokens)
        x = x + self.param("positions", nn.initializers.normal(0.02), (rows * columns, self.dim))
        for _ in range(self.depth):
            x = Block(self.heads, self.mlp)(x)
        return nn.Dense(self.classes, name="head")(nn.LayerNorm()(x).mean(axis=1))


class TokenTransformer(nn.Module):
    """Causal; learned positions, an output layer of its own, logits of every next token.

    With `only_last`, of the one after the last token.
    """

    vocabulary: int
    dim: int = 64
    depth: int = 2
    heads: int = 4
    mlp: int = 256
    only_last: bool = False

    @nn.compact
    def __call__(self, tokens):  # [batch, tokens], int32
        small = nn.initializers.normal(0.02)
        x = nn.Embed(self.vocabulary, self.dim, name="embed")(tokens)
        x = x + self.param("positions", small, (tokens.shape[-1], self.dim))
        for index in range(self.depth):
            x = Block(self.heads, self.mlp, causal=True, name=f"block_{index}")(x)
        logits = nn.Dense(self.vocabulary, kernel_init=small, name="head")(nn.LayerNorm()(x))
        return logits[:, -1] if self.only_last else logits
