"""Class activation maps: which places of an image raise a class's logit, and what the gates let through.

One forward pass serves every layer and every class. The part of the network up to the first layer that
is asked for runs without a graph; only the rest is differentiated, with respect to activations alone, for
all classes in one batch.
Nothing is hooked into the network, and none of its flags, gradients or buffers change, so any number of
threads may explain with one network at once.

Maps are raw: no rescaling to [0, 1] and no resizing. They are therefore comparable between the classes of
one image and, for one network, method and layer, between images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cervicyte.errors import UsageError

if TYPE_CHECKING:  # names, titles and defaults are needed where there is no torch, too
    from torch import Tensor

    from cervicyte.network.resnet import CBAMResNet50

# In the audits of two networks trained on SIPaKMeD, of four methods at three layers, either the most faithful
# or not told apart from it, by insertion minus deletion and by ROAD: docs/results/audit. Every network has
# this layer.
DEFAULT_METHOD = "grad-cam"
DEFAULT_LAYER = "layer4"
AT_THE_LAST = ("grad-cam", "hirescam")
"""Methods that at a network's last layer give the evidence of each place as it is, without any gradient."""
BATCHED_FROM = ("layer3", "cbam3", "layer4", "cbam4")
"""Layers behind which the gradients of all classes are few enough to be computed at once. From `layer1` on,
eight images of 224 pixels took 7.2 s so, against 6.0 s class by class, and five times the memory."""


@dataclass(frozen=True)
class Contrast:
    """A target that asks why class `of` rather than class `against`: the difference of their logits.

    Attributes:
        of: class index; None is the class with the highest logit, image by image.
        against: class index; None is the highest of the other logits (the runner-up), image by image.
    """

    of: int | None = None
    against: int | None = None


Target = int | Contrast


class Derivatives(NamedTuple):
    """What every method is computed from.

    Attributes:
        logits: float [N, C].
        activations: layer -> float [N, K, h, w]. After ReLU and gates, hence never negative.
        gradients: layer -> float [N, T, K, h, w], of target T's score by the activations.
    """

    logits: Tensor
    activations: dict[str, Tensor]
    gradients: dict[str, Tensor]


class Gates(NamedTuple):
    """The two gates of one CBAM, each value in (0, 1).

    Attributes:
        spatial: float [N, h, w].
        channel: float [N, K].
    """

    spatial: Tensor
    channel: Tensor


def explain(
    network: CBAMResNet50,
    images: Tensor,
    method: str = DEFAULT_METHOD,
    layers: Sequence[str] = (DEFAULT_LAYER,),
    classes: Target | Sequence[Target] | None = None,
    signed: bool = False,
) -> dict[str, Tensor]:
    """Return one map for every layer, image and class.

    Args:
        network: in evaluation mode.
        images: normalised, float [N, 3, H, W], on the network's device.
        method: one of `METHODS`.
        layers: of `network.layers`; several cost little more than the earliest of them.
        classes: one or several, each a class index or a `Contrast`; None is every class in order.
        signed: evidence for minus evidence against, see `Method.signed_maps`; else only evidence for.

    Returns:
        layer -> float32 [N, T, h, w] with T targets in the order given, at the layer's own resolution.

    Raises:
        UsageError: unknown method, layer or class; or the network is in training mode.

    Example:
        >>> network = CBAMResNet50(5).eval()
        >>> maps = explain(network, torch.zeros(2, 3, 64, 64), layers=["layer3", "cbam4"], classes=[0, 4])
        >>> {layer: tuple(values.shape) for layer, values in maps.items()}
        {'layer3': (2, 2, 4, 4), 'cbam4': (2, 2, 2, 2)}
    """
    chosen = method_named(method)
    found = differentiate(network, images, layers, classes)
    combine = chosen.signed_maps if signed else chosen.maps
    return {layer: combine(found.activations[layer], found.gradients[layer]) for layer in layers}


def grad_cam(
    network: CBAMResNet50,
    images: Tensor,
    layer: str = DEFAULT_LAYER,
    classes: Target | Sequence[Target] | None = None,
) -> Tensor:
    """Return Grad-CAM, float32 [N, T, h, w]; see `explain` and `grad_cam_formula`."""
    return explain(network, images, "grad-cam", (layer,), classes)[layer]


def grad_cam_plus_plus(
    network: CBAMResNet50,
    images: Tensor,
    layer: str = DEFAULT_LAYER,
    classes: Target | Sequence[Target] | None = None,
) -> Tensor:
    """Return Grad-CAM++, float32 [N, T, h, w]; see `explain` and `grad_cam_plus_plus_formula`."""
    return explain(network, images, "grad-cam++", (layer,), classes)[layer]


def hirescam(
    network: CBAMResNet50,
    images: Tensor,
    layer: str = DEFAULT_LAYER,
    classes: Target | Sequence[Target] | None = None,
) -> Tensor:
    """Return HiResCAM, float32 [N, T, h, w]; see `explain` and `hirescam_formula`."""
    return explain(network, images, "hirescam", (layer,), classes)[layer]


def layercam(
    network: CBAMResNet50,
    images: Tensor,
    layer: str = DEFAULT_LAYER,
    classes: Target | Sequence[Target] | None = None,
) -> Tensor:
    """Return LayerCAM, float32 [N, T, h, w]; see `explain` and `layercam_formula`."""
    return explain(network, images, "layercam", (layer,), classes)[layer]


def grad_cam_formula(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM: each channel weighted by the mean of its gradient over the map.

    With A the activations and g = ∂S/∂A the gradients of the score S: w_k = mean_ij g_kij,
    L_ij = Σ_k w_k A_kij, then ReLU. R. R. Selvaraju et al., "Grad-CAM: Visual Explanations from Deep
    Networks via Gradient-based Localization", ICCV 2017, eq. 1 and 2.

    Args:
        activations: float [N, K, h, w].
        gradients: float [N, T, K, h, w].

    Returns:
        L before the ReLU, float [N, T, h, w].

    Example:
        >>> activations, gradients = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[[3.0, -1.0]]]]])
        >>> grad_cam_formula(activations, gradients).tolist()
        [[[[1.0, 2.0]]]]
    """
    import torch

    return torch.einsum("ntk,nkhw->nthw", gradients.mean((3, 4)), activations)


def grad_cam_plus_plus_formula(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM++: places with a positive gradient count, less so in a channel that is active all over.

    w_k = Σ_ij a_kij ReLU(g_kij), L_ij = Σ_k w_k A_kij, then ReLU, with

        a_kij = g_kij² / (2 g_kij² + g_kij³ Σ_mn A_kmn)  where g_kij ≠ 0, else 0

    A. Chattopadhay et al., "Grad-CAM++: Generalized Gradient-based Visual Explanations for Deep
    Convolutional Networks", WACV 2018, eq. 10, 11 and 19. The powers of g stand for the second and third
    derivative of the class score and hold if that score is exp(S), S the logit, and S is piecewise linear
    in A (eq. 16 to 18). The paper's weight then has the further factor exp(S), one number for a whole map;
    it is left out here as in the authors' code, so that maps of unlikely classes do not vanish.

    Where g > 0, a = 1 / (2 + g Σ_mn A_kmn), which is computed as it stands: A is not negative, so the
    denominator is at least 2. Others keep the quotient and add a constant to its denominator: 1e-6 in
    pytorch-grad-cam, which at gradients of 1e-3, usual behind average pooling, is half as large as 2 g²
    and gives other maps than the paper. torch-cam 0.5 takes g_mn³ into the sum over A_mn, and divides a
    copy that is then thrown away: its weights are Σ_ij g_kij² ReLU(g_kij). Both differ; the paper is
    followed here.

    Args:
        activations: float [N, K, h, w], none negative, as behind a ReLU; a channel whose sum is below zero
            counts as one that is not active.
        gradients: float [N, T, K, h, w].

    Returns:
        L, float [N, T, h, w]; never negative.

    Example:
        >>> activations, gradients = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[[2.0, -1.0]]]]])
        >>> grad_cam_plus_plus_formula(activations, gradients).tolist()
        [[[[0.25, 0.5]]]]
    """
    import torch

    positive = gradients.relu()
    activity = activations.sum((2, 3)).clamp(min=0)[:, None, :, None, None]  # of a covariance, it may be less
    weights = (positive / (2 + positive * activity)).sum((3, 4))
    return torch.einsum("ntk,nkhw->nthw", weights, activations)


def hirescam_formula(activations: Tensor, gradients: Tensor) -> Tensor:
    """HiResCAM: each activation times its own gradient, summed over channels.

    L_ij = Σ_k g_kij A_kij. R. L. Draelos, L. Carin, "Use HiResCAM instead of Grad-CAM for faithful
    explanations of convolutional neural networks", arXiv:2011.08891, 2020. Behind the last layer stands
    only average pooling (g_kij = weight_k / (h w)) and a linear classifier: there ΣL plus the class's
    bias is its logit, so the signed map says exactly how much each place contributes.

    Args:
        activations: float [N, K, h, w].
        gradients: float [N, T, K, h, w].

    Returns:
        L before any ReLU, float [N, T, h, w].

    Example:
        >>> activations, gradients = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[[3.0, -1.0]]]]])
        >>> hirescam_formula(activations, gradients).tolist()
        [[[[3.0, -2.0]]]]
    """
    import torch

    return torch.einsum("ntkhw,nkhw->nthw", gradients, activations)


def layercam_formula(activations: Tensor, gradients: Tensor) -> Tensor:
    """LayerCAM: each activation times its own gradient where that is positive; made for early layers.

    L_ij = Σ_k ReLU(g_kij) A_kij, then ReLU. P.-T. Jiang et al., "LayerCAM: Exploring Hierarchical Class
    Activation Maps for Localization", IEEE Transactions on Image Processing 30, 2021, eq. 6 and 7.

    Args:
        activations: float [N, K, h, w].
        gradients: float [N, T, K, h, w].

    Returns:
        L before the last ReLU, float [N, T, h, w].

    Example:
        >>> activations, gradients = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[[3.0, -1.0]]]]])
        >>> layercam_formula(activations, gradients).tolist()
        [[[[3.0, 0.0]]]]
    """
    import torch

    return torch.einsum("ntkhw,nkhw->nthw", gradients.relu(), activations)


@dataclass(frozen=True)
class Method:
    """A formula, and whether its result tells evidence against by a negative sign.

    Attributes:
        title: the name as its paper writes it.
        formula: (activations [N, K, h, w], gradients [N, T, K, h, w]) -> [N, T, h, w], before ReLU.
        keeps_sign: True if the formula is linear in the gradients.
    """

    title: str
    formula: Callable[[Tensor, Tensor], Tensor]
    keeps_sign: bool

    def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return the method's maps as its paper has them, with ReLU: float32 [N, T, h, w], none negative."""
        return self.formula(activations, gradients).relu().float()

    def signed_maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return evidence for minus evidence against, float32 [N, T, h, w].

        A formula that keeps signs says so itself, without the last ReLU. One that drops negative
        gradients is asked twice, the second time for the negated score, as Selvaraju et al. 2017 do for
        "counterfactual explanations"; the difference is our addition to those methods.
        """
        found = self.formula(activations, gradients)
        return (found if self.keeps_sign else found - self.formula(activations, -gradients)).float()


# A further method is one formula and one line here.
METHODS: dict[str, Method] = {
    "grad-cam": Method("Grad-CAM", grad_cam_formula, keeps_sign=True),
    "grad-cam++": Method("Grad-CAM++", grad_cam_plus_plus_formula, keeps_sign=False),
    "hirescam": Method("HiResCAM", hirescam_formula, keeps_sign=True),
    "layercam": Method("LayerCAM", layercam_formula, keeps_sign=False),
}


def method_named(name: str) -> Method:
    """Return the method of this name.

    Raises:
        UsageError: there is none; the text names all.
    """
    if name not in METHODS:
        raise UsageError(f"There is no explanation method {name!r}; choose one of {', '.join(METHODS)}.")
    return METHODS[name]


def differentiate(
    network: CBAMResNet50,
    images: Tensor,
    layers: Sequence[str] = (DEFAULT_LAYER,),
    classes: Target | Sequence[Target] | None = None,
) -> Derivatives:
    """Return logits, and for every layer the activations and the gradients of every target's score.

    Arguments and errors are those of `explain`. Parameters are leaves that nobody asks about: autograd
    neither computes nor stores a gradient for them, whether or not they require one.
    """
    import torch

    _check(network, images, layers)
    wanted = sorted(set(layers), key=network.layers.index)
    # A caller's inference or no-grad mode would leave no graph; both modes belong to this thread alone.
    with torch.inference_mode(False):
        with torch.no_grad():
            x = network.features(images, wanted[0])
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            taps = {wanted[0]: x}
            for name in network.layers[network.layers.index(wanted[0]) + 1 :]:
                x = network.get_submodule(name)(x)
                if name in wanted:
                    taps[name] = x
            logits = network.logits_from(x, network.layers[-1])
            directions = _directions(logits.detach(), classes)
            gradients = _gradients(logits, list(taps.values()), directions, wanted[0] in BATCHED_FROM)
    return Derivatives(
        logits.detach(),
        {layer: tap.detach() for layer, tap in taps.items()},
        dict(zip(taps, gradients, strict=True)),
    )


def _gradients(logits: Tensor, taps: list[Tensor], directions: Tensor, batched: bool) -> list[Tensor]:
    """Return the gradients of each tap [N, K, h, w], [N, T, K, h, w], for directions [T, N, C]."""
    import torch

    if batched:
        found = torch.autograd.grad(logits, taps, directions, is_grads_batched=True)
        return [of_targets.transpose(0, 1) for of_targets in found]
    one_by_one = [torch.autograd.grad(logits, taps, one, retain_graph=True) for one in directions]
    return [torch.stack(of_targets, 1) for of_targets in zip(*one_by_one, strict=True)]


def unexplained_by_hirescam(network: CBAMResNet50, found: Derivatives) -> float:
    """Return by how much HiResCAM at the last layer misses the logits: the largest `|Σ map + bias - logit|`.

    Only average pooling and the classifier stand behind that layer, so nothing but rounding is left over.

    Args:
        network: that the derivatives are of.
        found: of every class in order, at the network's last layer among others.
    """
    layer = network.layers[-1]
    sums = hirescam_formula(found.activations[layer].double(), found.gradients[layer].double()).sum((2, 3))
    return float((sums + network.fc.bias.detach().double() - found.logits.double()).abs().max())


def cbam_gates(network: CBAMResNet50, images: Tensor) -> dict[str, Gates]:
    """Return what each attention block lets through: `cbam1` … `cbam4`, as far as they are -> `Gates`.

    Unlike the maps these do not depend on a class: they say what is passed on, not what it speaks for.
    A fresh gate is one half everywhere.

    Args:
        network: of placement `stage`, in evaluation mode.
        images: normalised, float [N, 3, H, W].

    Raises:
        UsageError: the network has no gates after its stages, or is in training mode.

    Example:
        >>> gates = cbam_gates(CBAMResNet50(5).eval(), torch.zeros(1, 3, 64, 64))
        >>> gates["cbam1"].spatial.shape, gates["cbam1"].channel.shape
        (torch.Size([1, 16, 16]), torch.Size([1, 256]))
    """
    import torch

    check_gates(network)
    _check(network, images, network.layers[:1])
    with torch.no_grad():
        return _gates(network, images)


def gated_layers(network: CBAMResNet50) -> tuple[str, ...]:
    """Return the layers that are attention blocks after a stage, in the order of computation.

    Pooling by covariance, which stands in place of the last stage, has none behind it.
    """
    from cervicyte.network.cbam import CBAM

    return tuple(name for name in network.layers if isinstance(network.get_submodule(name), CBAM))


def _gates(network: CBAMResNet50, images: Tensor) -> dict[str, Gates]:
    gates, x, gated = {}, images, gated_layers(network)
    for stage in range(1, 5):
        x = network.features(images, "layer1") if stage == 1 else network.get_submodule(f"layer{stage}")(x)
        if f"cbam{stage}" not in gated:
            continue
        block = network.get_submodule(f"cbam{stage}")
        channel = block.channel_attention(x)
        x = x * channel
        spatial = block.spatial_attention(x)
        x = x * spatial
        gates[f"cbam{stage}"] = Gates(spatial[:, 0], channel[:, :, 0, 0])
    return gates


def contrasted_of(logits: np.ndarray, contrast: Contrast) -> tuple[int, int]:
    """Return the two classes of a contrast for one image's logits [C], see `contrasted`.

    Raises:
        UsageError: no such class, or the same twice.
    """
    for named in (contrast.of, contrast.against):
        if named is not None and not 0 <= named < len(logits):
            raise UsageError(f"There is no class {named!r}; the classes are 0 to {len(logits) - 1}.")
    of = int(logits.argmax()) if contrast.of is None else contrast.of
    others = np.where(np.arange(len(logits)) == of, -np.inf, logits)
    against = int(others.argmax()) if contrast.against is None else contrast.against
    if of == against:
        raise UsageError("A contrast needs two different classes; name another class to hold against.")
    return of, against


def evidence_for(evidence: np.ndarray, target: Target) -> np.ndarray:
    """Return the signed map [h, w] of a target by `AT_THE_LAST` at the last layer.

    Args:
        evidence: float [C, h, w], how much each place adds to each class's logit, as engines give it.
        target: a class, or a contrast of two named ones.
    """
    if not isinstance(target, Contrast):
        return evidence[int(target)]
    if target.of is None or target.against is None:
        raise ValueError("a contrast to be shown names both classes")
    return evidence[target.of] - evidence[target.against]


def check_gates(network: CBAMResNet50) -> None:
    """Refuse a network that has no gates after its stages.

    Raises:
        UsageError: it has none there; the text says where its attention is.
    """
    if network.placement != "stage":
        raise UsageError(
            f"This network's attention placement is {network.placement!r}; gate maps need a network "
            "trained with placement 'stage'."
        )


def check_layers(network: CBAMResNet50, layers: Sequence[str]) -> None:
    """Refuse anything but a list of this network's layers.

    Raises:
        UsageError: unknown layer or none; the text names all.
    """
    valid = ", ".join(network.layers)
    if isinstance(layers, str) or not layers:
        raise UsageError(f"Layers must be given as a list of names; choose from {valid}.")
    for layer in layers:
        if layer not in network.layers:
            raise UsageError(f"There is no layer {layer!r} in this network; choose from {valid}.")


def _check(network: CBAMResNet50, images: Tensor, layers: Sequence[str]) -> None:
    """Refuse at the door what would change the network or fail deep inside it."""
    check_layers(network, layers)
    if images.ndim != 4 or images.shape[1] != 3:
        raise UsageError(f"Images must have the shape [N, 3, H, W], not {list(images.shape)}.")
    if any(module.training for module in network.modules()):
        # Batch statistics would make the maps depend on the batch, and would be written to the network.
        raise UsageError("The network is in training mode; call network.eval() before explaining.")


def contrasted(logits: Tensor, contrast: Contrast) -> tuple[Tensor, Tensor]:
    """Return the two classes of a contrast, int [N] each, for logits [N, C].

    Raises:
        UsageError: no such class, or the same twice.
    """
    of = logits.argmax(1) if contrast.of is None else _index(contrast.of, logits)
    others = logits.scatter(1, of[:, None], -math.inf)
    against = others.argmax(1) if contrast.against is None else _index(contrast.against, logits)
    if bool((of == against).any()):
        raise UsageError("A contrast needs two different classes; name another class to hold against.")
    return of, against


def _directions(logits: Tensor, classes: Target | Sequence[Target] | None) -> Tensor:
    """Return the coefficients [T, N, C] by which each target's score is made of the logits [N, C]."""
    import torch

    count = logits.shape[1]
    targets: Sequence[Target]
    if classes is None:
        targets = range(count)
    elif isinstance(classes, int | Integral | Contrast):
        targets = [classes]
    else:
        targets = classes
    if not len(targets):
        raise UsageError("No class was named; name at least one, or leave classes out for all of them.")
    rows = []
    for target in targets:
        if isinstance(target, Contrast):
            of, against = contrasted(logits, target)
            rows.append(_one_hot(of, logits) - _one_hot(against, logits))
        else:
            rows.append(_one_hot(_index(target, logits), logits))
    return torch.stack(rows)


def _index(target: int, logits: Tensor) -> Tensor:
    count = logits.shape[1]
    if isinstance(target, bool) or not isinstance(target, Integral) or not 0 <= target < count:
        raise UsageError(f"There is no class {target!r} in this network; its classes are 0 to {count - 1}.")
    return logits.new_full((len(logits),), int(target)).long()


def _one_hot(index: Tensor, logits: Tensor) -> Tensor:
    return logits.new_zeros(logits.shape).scatter_(1, index[:, None], 1.0)
