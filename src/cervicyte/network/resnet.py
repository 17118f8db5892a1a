"""ResNet-50 with CBAM, able to stop at any layer and to go on from there.

Sources: K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, in
torchvision's form: its names, its strides and its order of random draws, written out here, since importing
torchvision takes as long as torch itself; S. Woo et al., "CBAM", ECCV 2018.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cervicyte.network.cbam import CBAM, FRESH_GATE_FACTOR
from cervicyte.network.covariance import CovariancePooling
from cervicyte.network.description import COVARIANCE_NETWORK, DEFAULT_NETWORK, Placement, layers_of

STAGE_BLOCKS = (3, 4, 6, 3)
STAGE_CHANNELS = (256, 512, 1024, 2048)


class Bottleneck(nn.Module):
    """Three convolutions and a shortcut; the stride is the second's (ResNet v1.5, as in torchvision)."""

    expansion = 4

    def __init__(
        self, inputs: int, planes: int, stride: int = 1, downsample: nn.Module | None = None
    ) -> None:
        """Map `inputs` channels to `planes * expansion`; `downsample` fits the shortcut to that."""
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C', H', W']."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += identity
        return self.relu(out)


class CBAMBottleneck(Bottleneck):
    """ResNet's bottleneck with CBAM on its branch, before the addition (Woo et al. 2018, fig. 3)."""

    def __init__(
        self, inputs: int, planes: int, stride: int = 1, downsample: nn.Module | None = None
    ) -> None:
        """Build the bottleneck and the gates over its output."""
        super().__init__(inputs, planes, stride, downsample)
        self.cbam = CBAM(planes * self.expansion)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C', H', W']."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.cbam(self.bn3(self.conv3(out)))
        return self.relu(out + identity)


if TYPE_CHECKING:

    class _Module(nn.Module):
        """torch's annotations say too little of parts that are asked for by name, and of `to`."""

        def __getattr__(self, name: str) -> Any: ...
        def get_submodule(self, target: str) -> Any: ...
        def to(self, *arguments: Any, **options: Any) -> CBAMResNet50: ...

else:
    _Module = nn.Module


class CBAMResNet50(_Module):
    """ResNet-50 for `class_count` classes with CBAM `stage`-wise, in every `block`, or `none`.

    The state dict has torchvision's keys and, with `stage`, `cbam1` … `cbam4` as in the original
    notebook. For five classes `stage` has 24,214,989 parameters.

    Args:
        class_count: number of classes, the size of the last layer.
        placement: `stage` (after each of the four stages), `block` (as in the paper), `none`.

    Example:
        >>> network = CBAMResNet50(5).eval()
        >>> network(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 5])
    """

    kind: ClassVar[str] = DEFAULT_NETWORK
    stage_blocks: ClassVar[tuple[int, ...]] = STAGE_BLOCKS

    def __init__(self, class_count: int, placement: Placement = "stage") -> None:
        """Build the network with random weights; see `backbone.load_backbone` for pretrained ones."""
        super().__init__()
        block = CBAMBottleneck if placement == "block" else Bottleneck
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = 64
        for stage, (blocks, outputs) in enumerate(
            zip(self.stage_blocks, STAGE_CHANNELS[: len(self.stage_blocks)], strict=True), start=1
        ):
            layer = _stage(block, channels, outputs // block.expansion, blocks, stride=1 if stage == 1 else 2)
            self.add_module(f"layer{stage}", layer)
            channels = outputs
        channels = self._add_end(channels)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, class_count)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.placement: Placement = placement
        if placement == "stage":
            for stage, channels in enumerate(STAGE_CHANNELS[: len(self.stage_blocks)], start=1):
                self.add_module(f"cbam{stage}", CBAM(channels))
        for module in self.modules():  # those in the blocks were drawn anew
            if isinstance(module, CBAM):
                module.reset_gates()

    def _add_end(self, channels: int) -> int:
        """Add what stands behind the last of `stage_blocks` and return its channels: here, nothing."""
        return channels

    @property
    def layers(self) -> tuple[str, ...]:
        """The names that `features` and `logits_from` take, in the order of computation."""
        return layers_of(self.placement)

    def features(self, images: Tensor, layer: str, after: str | None = None) -> Tensor:
        """Return the activations [N, C, h, w] right after `layer` for images [N, 3, H, W].

        With `after`, the images are the activations right after that layer, and it goes on from there.
        """
        x = images if after else self.maxpool(self.relu(self.bn1(self.conv1(images))))
        begin = self.layers.index(after) + 1 if after else 0
        for name in self.layers[begin : self.layers.index(layer) + 1]:
            x = self.get_submodule(name)(x)
        return x

    def logits_from(self, features: Tensor, layer: str) -> Tensor:
        """Return the logits [N, classes] that the rest of the network makes of `layer`'s output."""
        x = features
        for name in self.layers[self.layers.index(layer) + 1 :]:
            x = self.get_submodule(name)(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [N, classes] for normalised images [N, 3, H, W]."""
        last = self.layers[-1]
        return self.logits_from(self.features(images, last), last)

    @torch.no_grad()
    def compensate_fresh_gates(self) -> None:
        """Put back the factor that fresh gates take away, so that plain ResNet-50 is computed exactly.

        With `stage`, the factor goes into the layers that read gated features: the first and the
        downsampling convolution of the next stage, and the classifier after the last. With `block`
        it goes into the batch normalisation in front of the gates. To be called once, on plain
        weights.
        """
        restore = 1 / FRESH_GATE_FACTOR
        if self.placement == "stage":
            for stage in (self.layer2, self.layer3, self.layer4):
                stage[0].conv1.weight.mul_(restore)
                stage[0].downsample[0].weight.mul_(restore)
            self.fc.weight.mul_(restore)
        elif self.placement == "block":
            for module in self.modules():
                if isinstance(module, CBAMBottleneck):
                    module.bn3.weight.mul_(restore)
                    module.bn3.bias.mul_(restore)

    def freeze(self, stages: int, gates: bool = False) -> list[nn.Module]:
        """Stop training of the stem and the first `stages` stages; 0 freezes nothing.

        With `gates`, those after the frozen stages stand still too: gates that were trained before have
        something to keep. Returns the frozen modules: the training loop keeps them in evaluation mode, so
        that their batch-normalisation statistics stand still too.
        """
        if stages == 0:
            return []
        frozen: list[nn.Module] = [self.conv1, self.bn1]
        names = ("layer", "cbam") if gates and self.placement == "stage" else ("layer",)
        frozen += [self.get_submodule(f"{name}{stage}") for stage in range(1, stages + 1) for name in names]
        for module in frozen:
            module.requires_grad_(False)
        return frozen


class CBAMResNet50Covariance(CBAMResNet50):
    """The same with pooling by covariance in place of the last stage and its gates, see `covariance`.

    It is made of another network and the cells at hand (`classifier: covariance`), not trained from its
    beginning. The layers keep their names, so that `layer4` and `cbam4` are the pooling, one as the other.

    Example:
        >>> network = CBAMResNet50Covariance(7).eval()
        >>> network.features(torch.rand(1, 3, 64, 64), "layer4").shape, network.fc.in_features
        (torch.Size([1, 1024, 4, 4]), 1024)
    """

    kind: ClassVar[str] = COVARIANCE_NETWORK
    stage_blocks: ClassVar[tuple[int, ...]] = STAGE_BLOCKS[:-1]

    def __init__(self, class_count: int, placement: Placement = "stage") -> None:
        """Build the network with random weights."""
        super().__init__(class_count, placement)
        if placement == "stage":
            self.cbam4 = nn.Identity()

    def _add_end(self, channels: int) -> int:
        self.layer4 = CovariancePooling(channels)
        return self.layer4.project.out_channels**2


# By the name that recipes and model files give it. Another kind is a subclass, see docs/extend.md.
NETWORKS: dict[str, type[CBAMResNet50]] = {one.kind: one for one in (CBAMResNet50, CBAMResNet50Covariance)}


def _stage(block: type[Bottleneck], inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    """Return a stage, whose first block halves the sides if `stride` is 2."""
    outputs = planes * block.expansion
    downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    first = block(inputs, planes, stride, downsample)
    return nn.Sequential(first, *(block(outputs, planes) for _ in range(blocks - 1)))


def folded(network: CBAMResNet50) -> CBAMResNet50:
    """Return a copy that computes the same with each batch normalisation folded into its convolution.

    The copy answers in evaluation mode only, and differs by rounding: a convolution and a normalisation
    are one multiplication and one addition of each feature the less.

    Example:
        >>> network, images = CBAMResNet50(5).eval(), torch.rand(2, 3, 64, 64)
        >>> torch.allclose(folded(network)(images), network(images), rtol=1e-3, atol=1e-4)
        True
    """
    copied = copy.deepcopy(network).eval().requires_grad_(False)
    for module in list(copied.modules()):
        if isinstance(module, Bottleneck):
            for convolution, normalisation in (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")):
                _fold(module, convolution, normalisation)
            if module.downsample is not None:
                _fold(module.downsample, "0", "1")
    _fold(copied, "conv1", "bn1")
    return copied


def _fold(parent: nn.Module, convolution: str, normalisation: str) -> None:
    """Replace both in place: the first by one that does the work of the second, the second by nothing."""
    before, after = parent.get_submodule(convolution), parent.get_submodule(normalisation)
    assert isinstance(before, nn.Conv2d)
    assert isinstance(after, nn.BatchNorm2d)
    parent.register_module(convolution, fuse_conv_bn_eval(before, after))
    parent.register_module(normalisation, nn.Identity())
