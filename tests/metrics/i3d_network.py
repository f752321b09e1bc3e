"""The architecture of I3D (arXiv:1705.07750, Fig. 3) with random weights, called as the published script is."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad


def pad_same(x: Tensor, kernel: list[int], stride: list[int]) -> Tensor:
    """Pad (B, C, F, H, W) with zeros so that an output has ceil(size / stride) places along each axis."""
    amounts: list[int] = []
    for axis in range(2, -1, -1):
        size = x.shape[2 + axis]
        total = max(kernel[axis] - (stride[axis] if size % stride[axis] == 0 else size % stride[axis]), 0)
        amounts += [total // 2, total - total // 2]
    return pad(x, amounts)


class Unit(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, last: bool = False) -> None:
        super().__init__()
        self.kernel, self.stride, self.last = [kernel] * 3, [stride] * 3, last
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, bias=last)
        self.norm = nn.BatchNorm3d(outputs, eps=1e-3)
        nn.init.kaiming_normal_(self.conv.weight)  # so that something of the input reaches the end

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(pad_same(x, self.kernel, self.stride))
        return x if self.last else torch.relu(self.norm(x))


class Pool(nn.Module):
    def __init__(self, kernel: list[int], stride: list[int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.pool = nn.MaxPool3d(kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(pad_same(x, self.kernel, self.stride))


class Inception(nn.Module):
    def __init__(self, inputs: int, a: int, b: tuple[int, int], c: tuple[int, int], d: int) -> None:
        super().__init__()
        self.a = Unit(inputs, a)
        self.b = nn.Sequential(Unit(inputs, b[0]), Unit(b[0], b[1], 3))
        self.c = nn.Sequential(Unit(inputs, c[0]), Unit(c[0], c[1], 3))
        self.d = nn.Sequential(Pool([3, 3, 3], [1, 1, 1]), Unit(inputs, d))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x), self.c(x), self.d(x)], dim=1)


class I3DNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            Unit(3, 64, 7, 2),
            Pool([1, 3, 3], [1, 2, 2]),
            Unit(64, 64),
            Unit(64, 192, 3),
            Pool([1, 3, 3], [1, 2, 2]),
            Inception(192, 64, (96, 128), (16, 32), 32),
            Inception(256, 128, (128, 192), (32, 96), 64),
            Pool([3, 3, 3], [2, 2, 2]),
            Inception(480, 192, (96, 208), (16, 48), 64),
            Inception(512, 160, (112, 224), (24, 64), 64),
            Inception(512, 128, (128, 256), (24, 64), 64),
            Inception(512, 112, (144, 288), (32, 64), 64),
            Inception(528, 256, (160, 320), (32, 128), 128),
            Pool([2, 2, 2], [2, 2, 2]),
            Inception(832, 256, (160, 320), (32, 128), 128),
            Inception(832, 384, (192, 384), (48, 128), 128),
            nn.AvgPool3d([2, 7, 7], [1, 1, 1]),
        )
        self.logits = Unit(1024, 400, last=True)

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        if rescale:
            x = x.float() / 255 * 2 - 1
        if resize:
            x = interpolate(x, [x.shape[2], 224, 224], mode="trilinear", align_corners=False)
        logits = self.logits(self.trunk(x)).mean(dim=[2, 3, 4])
        return logits if return_features else logits.softmax(dim=1)
