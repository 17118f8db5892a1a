"""CBAM, the convolutional block attention module: two sigmoid gates, one over channels, one over space.

Source: S. Woo, J. Park, J.-Y. Lee, I. S. Kweon, "CBAM: Convolutional Block Attention Module",
ECCV 2018. Published gains over plain networks are mixed; `placement: none` is the control.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Two fresh sigmoid gates, each at sigmoid(0) = 1/2, multiply every feature by this.
FRESH_GATE_FACTOR = 0.25


class ChannelAttention(nn.Module):
    """Which channels matter: sigmoid(MLP(avgpool(x)) + MLP(maxpool(x))), one gate a channel.

    The MLP is two 1 x 1 convolutions without bias, shared by both pools (Woo et al. 2018, eq. 2).
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        """Build the gate for `channels` features; the hidden layer has `channels // reduction`."""
        super().__init__()
        self.fc = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels // reduction, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the gate [N, C, 1, 1] in (0, 1) for features [N, C, H, W]."""
        average = self.fc(x.mean((2, 3), keepdim=True))
        maximum = self.fc(x.amax((2, 3), keepdim=True))
        return torch.sigmoid(average + maximum)


class SpatialAttention(nn.Module):
    """Where to look: sigmoid of a 7 x 7 convolution over channel mean and channel maximum.

    Source: Woo et al. 2018, eq. 3.
    """

    def __init__(self, kernel_size: int = 7) -> None:
        """Build the gate; `kernel_size` is odd, so that the map keeps its size."""
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gate [N, 1, H, W] in (0, 1) for features [N, C, H, W]."""
        summary = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return torch.sigmoid(self.conv(summary))


class CBAM(nn.Module):
    """The channel gate, then the spatial gate. Both start at exactly one half everywhere."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        """Build both gates for `channels` features, with their last layers at zero."""
        super().__init__()
        self.channel_attention = ChannelAttention(channels, reduction)
        self.spatial_attention = SpatialAttention()
        self.reset_gates()

    def reset_gates(self) -> None:
        """Set the last layer of each gate to zero: every gate is then exactly one half."""
        for last in ("channel_attention.fc.2.weight", "spatial_attention.conv.weight"):
            nn.init.zeros_(self.get_parameter(last))

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated features, of the same shape [N, C, H, W]."""
        x = x * self.channel_attention(x)
        return x * self.spatial_attention(x)
