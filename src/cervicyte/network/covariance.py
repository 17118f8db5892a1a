"""Pooling by covariance: which channels of an image vary together, over its places.

The mean over the last activations says how much of each pattern an image has, and little of its texture. Here
a few combinations of channels are taken, their covariance over the places of the image, and its matrix square
root, by which a few strong directions no longer outweigh all others: P. Li, J. Xie, Q. Wang, W. Zuo, "Is
second-order information helpful for large-scale visual recognition?", ICCV 2017. The root is found by the
iteration of Newton and Schulz, in matrix products alone: P. Li, J. Xie, Q. Wang, Z. Gao, "Towards faster
training of global covariance pooling networks by iterative matrix square root normalization", CVPR 2018.

With y the centred combinations at a place, C the mean of y yᵀ plus `RIDGE` on its diagonal, and Z its inverse
root, the root is C Z, which is a mean over places of their own y yᵀ Z, plus the share of the ridge. So each
place's part in it can be given as activations of that place, and what reads them stays what it is behind any
stage: a mean over places and one linear layer, whose evidence is each place's own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cervicyte.network.graph import COMBINATIONS, ITERATIONS, RIDGE


class CovariancePooling(nn.Module):
    """Map activations to each place's part in the square root of their covariance over places."""

    def __init__(self, inputs: int, combinations: int = COMBINATIONS) -> None:
        """Combine `inputs` channels to `combinations`, K, and give K² channels."""
        super().__init__()
        self.project = nn.Conv2d(inputs, combinations, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, h, w] to [N, K², h, w], whose mean over places is the root, row by row.

        It is computed in float32 whatever the rest is, and returned in the precision of the weights.
        """
        with torch.autocast(x.device.type, enabled=False):  # a root in bfloat16 would be another one
            y = functional.conv2d(x.float(), self.project.weight.float())
            height, width = y.shape[2:]
            y = y.flatten(2)
            y = y - y.mean(2, keepdim=True)
            covariance = y @ y.transpose(1, 2) / y.shape[2]
            inverse = inverse_root(covariance + RIDGE * identity_like(covariance))
            turned = inverse @ y
            product = y[:, :, None] * turned[:, None]  # [N, K, K, places]
            parts = (product + product.transpose(1, 2)) / 2 + (RIDGE * inverse)[..., None]
            return parts.flatten(1, 2).unflatten(2, (height, width)).to(self.project.weight.dtype)


def inverse_root(matrices: Tensor) -> Tensor:
    """Return the inverse square roots of symmetric matrices, [N, K, K], with positive eigenvalues.

    N. Higham, Functions of Matrices, SIAM 2008, chapter 6.7: converges as the trace is divided out before.

    Example:
        >>> inverse_root(torch.diag(torch.tensor([4.0, 0.25]))[None]).round(decimals=4).tolist()
        [[[0.5, 0.0], [0.0, 2.0]]]
    """
    identity = identity_like(matrices)
    trace = matrices.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    root, inverse = matrices / trace, identity
    for _ in range(ITERATIONS):
        step = 1.5 * identity - 0.5 * (inverse @ root)
        root, inverse = root @ step, step @ inverse
    return inverse / trace.sqrt()


def identity_like(matrices: Tensor) -> Tensor:
    """Return as many identities, [N, K, K]; a traced `torch.eye` would stay on the device of its tracing."""
    return torch.diag_embed(torch.ones_like(matrices[:, 0]))
