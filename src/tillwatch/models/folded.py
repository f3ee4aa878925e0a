"""Convolutions over space alone, or over time alone, computed in two dimensions: same weights, same results.

A 1 x k x k convolution of ``(B, C, T, H, W)`` is a k x k convolution of ``(B * T, C, H, W)``; a k x 1 x 1 one is a
k x 1 convolution of ``(B, C, T, H * W)``. In channels_last_3d memory both are views, so nothing is copied. CPU
libraries have fast paths for two dimensions that they lack for three; above all in bf16, where PyTorch's
three-dimensional form has also been seen to return gradients from uninitialised memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class SpatialConv3d(nn.Conv3d):
    """A Conv3d whose kernel has one frame: each frame is convolved by itself."""

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Maps ``(B, C, T, H, W)`` to ``(B, C', T', H', W')`` as Conv3d does."""
        # Of a kernel of one pixel, strides are taken by slicing: where oneDNN takes them, with few channels and on a
        # CPU with no more than AVX2, it writes beyond its memory.
        by_slicing = self.stride if self.kernel_size == (1, 1, 1) and not any(_pair(self.padding)) else None
        frames = _every(clips, *(by_slicing or (self.stride[0], 1, 1))).transpose(1, 2)  # (B, T', C, H, W)
        stride = (1, 1) if by_slicing else (self.stride[1], self.stride[2])
        dilation = self.dilation[1], self.dilation[2]
        weight = self.weight.squeeze(2)
        out = _convolve(frames.flatten(0, 1), weight, self.bias, stride, _pair(self.padding), dilation, self.groups)
        return out.reshape(*frames.shape[:2], *out.shape[1:]).transpose(1, 2)


class TemporalConv3d(nn.Conv3d):
    """A Conv3d whose kernel has one pixel: each pixel's course through time is convolved by itself."""

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Maps ``(B, C, T, H, W)`` to ``(B, C', T', H', W')`` as Conv3d does."""
        pixels = _every(clips, 1, self.stride[1], self.stride[2])
        courses, weight = pixels.flatten(3), self.weight.squeeze(4)
        stride, padding, dilation = (self.stride[0], 1), (int(self.padding[0]), 0), (self.dilation[0], 1)
        out = _convolve(courses, weight, self.bias, stride, padding, dilation, self.groups)
        return out.reshape(*out.shape[:3], *pixels.shape[3:])


def fold(network: nn.Module) -> nn.Module:
    """Makes a network compute its foldable convolutions in two dimensions, in place.

    Parameters, state_dict keys and module names stay what they were; convolutions over space and time at once
    (3 x 3 x 3) are left alone.

    Returns:
        The same network.
    """
    for module in network.modules():
        if not isinstance(module, nn.Conv3d) or type(module).forward is not nn.Conv3d.forward:
            continue
        if module.padding_mode == "zeros" and not isinstance(module.padding, str):
            if module.kernel_size[0] == 1 and module.padding[0] == 0:
                module.__class__ = SpatialConv3d
            elif module.kernel_size[1:] == (1, 1) and tuple(module.padding[1:]) == (0, 0):
                module.__class__ = TemporalConv3d
    return network


def unfold(network: nn.Module) -> nn.Module:
    """Undoes :func:`fold`, in place.

    Returns:
        The same network.
    """
    for module in network.modules():
        if type(module) in (SpatialConv3d, TemporalConv3d):
            module.__class__ = nn.Conv3d
    return network


def is_folded_whole(network: nn.Module) -> bool:
    """Whether no three-dimensional convolution is left in a network."""
    return not any(
        isinstance(module, nn.Conv3d) and not isinstance(module, SpatialConv3d | TemporalConv3d)
        for module in network.modules()
    )


def _every(clips: torch.Tensor, *steps: int) -> torch.Tensor:
    """Returns every so manieth frame, row and column of ``(B, C, T, H, W)``."""
    if torch.is_grad_enabled() and clips.requires_grad and set(steps) != {1}:
        every: torch.Tensor = _Every.apply(clips, steps)
        return every
    return clips[_place(steps)]


def _place(steps: tuple[int, ...]) -> tuple[slice, ...]:
    return slice(None), slice(None), *(slice(None, None, step) for step in steps)


class _Every(torch.autograd.Function):
    """Slicing whose gradient lies in memory as the clips do.

    The gradient of PyTorch's own lies channel by channel, and what it meets on its way back (another gradient that it
    is added to, a ReLU) then goes through memory against the grain, several times as slowly.
    """

    @staticmethod
    def forward(ctx: Any, clips: torch.Tensor, steps: tuple[int, ...]) -> torch.Tensor:
        ctx.shape, ctx.steps = clips.shape, steps
        last = clips.is_contiguous(memory_format=torch.channels_last_3d)
        ctx.memory_format = torch.channels_last_3d if last else torch.contiguous_format
        return clips[_place(steps)]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (grad,) = grads
        whole = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.memory_format).zero_()
        whole[_place(ctx.steps)] = grad
        return whole, None


def _convolve(
    images: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> torch.Tensor:
    """Convolves ``(N, C, H, W)`` by ``(C', C, k, k')``, with gradients by the fastest way that is known."""
    if groups == 1 and _is_slow_backwards(images, weight):
        out: torch.Tensor = _Convolution.apply(images, weight, bias, stride, padding, dilation)
        return out
    return F.conv2d(images, weight, bias, stride, padding, dilation, groups)


def _is_slow_backwards(images: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether products of matrices may give a convolution's weight gradient sooner than PyTorch does.

    In fp32 with channels last they do: on a CPU with AVX2, oneDNN's code for it is half as fast as a product or worse.
    """
    return (
        torch.is_grad_enabled()
        and weight.requires_grad
        and not torch.compiler.is_compiling()  # it would unroll the loops over frames
        and not torch.is_autocast_enabled("cpu")
        and images.device.type == "cpu"
        and images.dtype in (torch.float32, torch.float64)
        and images.is_contiguous(memory_format=torch.channels_last)
    )


def _has_slow_gradients_over_space() -> bool:
    """Whether that is so of kernels over space too: measured with AVX2, unknown of other CPUs."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


class _Convolution(torch.autograd.Function):
    """The convolution of ``(N, C, H, W)`` by ``(C', C, k, k')``, whose weights' gradient is made of matrix products."""

    @staticmethod
    def forward(
        ctx: Any,
        images: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
    ) -> torch.Tensor:
        ctx.save_for_backward(images, weight)
        ctx.how = stride, padding, dilation
        return F.conv2d(images, weight, bias, stride, padding, dilation)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.how
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        in_one_column = weight.shape[3] == 1 and (stride[1], padding[1]) == (1, 0)
        in_columns = not in_one_column and _has_slow_gradients_over_space()
        wanted = ctx.needs_input_grad[0], not (in_one_column or in_columns), ctx.needs_input_grad[2]
        of_images, of_weight, of_bias = torch.ops.aten.convolution_backward(
            grad, images, weight, [len(weight)], stride, padding, dilation, False, (0, 0), 1, wanted
        )
        # Rows of channels, one after the other in memory.
        out, rows = grad.permute(0, 2, 3, 1), images.permute(0, 2, 3, 1)
        if in_one_column:
            of_weight = _by_taps(out, rows, weight.shape[2], stride[0], padding[0], dilation[0])
        elif in_columns:
            of_weight = _by_columns(out, rows, (weight.shape[2], weight.shape[3]), stride, padding, dilation)
        return of_images, of_weight, of_bias, None, None, None


def _by_taps(
    grad: torch.Tensor, courses: torch.Tensor, kernel: int, stride: int, padding: int, dilation: int
) -> torch.Tensor:
    """Returns the gradient ``(C', C, k, 1)`` of a kernel over time: of each tap the sum of frames' outer products.

    Args:
        grad: ``(B, T', P, C')``, of what was convolved.
        courses: ``(B, T, P, C)``, what was convolved.
    """
    taps = grad.new_zeros(kernel, grad.shape[3], courses.shape[3])
    for tap in range(kernel):
        shift = tap * dilation - padding
        first = max(0, -(shift // stride))
        stop = min(grad.shape[1], (courses.shape[1] - 1 - shift) // stride + 1)
        if first >= stop:  # it meets nothing but padding
            continue
        met = slice(first * stride + shift, (stop - 1) * stride + shift + 1, stride)
        for after, before in zip(grad[:, first:stop], courses[:, met], strict=True):
            taps[tap].addmm_(after.flatten(0, 1).t(), before.flatten(0, 1))
    return taps.permute(1, 2, 0).unsqueeze(3)


_COLUMNS_BYTES = 1 << 20
"""What the inputs that meet the outputs worked on at once may take: they stay in the processor's cache."""


def _by_columns(
    grad: torch.Tensor,
    frames: torch.Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> torch.Tensor:
    """Returns the gradient ``(C', C, k, k')`` of a kernel over space: outputs times all that they were made of.

    Args:
        grad: ``(N, H', W', C')``, of what was convolved.
        frames: ``(N, H, W, C)``, what was convolved.
    """
    number, height, width, out_channels = grad.shape
    (down, across), (high, wide, channels) = padding, frames.shape[1:]
    of_weight = grad.new_zeros(out_channels, kernel[0] * kernel[1] * channels)
    # No fewer outputs than channels, or adding to the gradient costs more than the products.
    outputs = max(_COLUMNS_BYTES // (of_weight.shape[1] * grad.element_size()), out_channels)
    images, lines = max(1, min(outputs // (height * width), number)), max(1, min(outputs // width, height))
    padded = frames.new_zeros(images, high + 2 * down, wide + 2 * across, channels)
    met = padded.unfold(1, dilation[0] * (kernel[0] - 1) + 1, stride[0])
    met = met.unfold(2, dilation[1] * (kernel[1] - 1) + 1, stride[1])[..., :: dilation[0], :: dilation[1]]
    met = met.permute(0, 1, 2, 4, 5, 3)  # (images, H', W', k, k', C)
    for first in range(0, number, images):
        after, before = grad[first : first + images], frames[first : first + images]
        padded[: len(before), down : down + high, across : across + wide] = before
        for line in range(0, height, lines):
            outer = after[:, line : line + lines].reshape(-1, out_channels)
            of_weight.addmm_(outer.t(), met[: len(before), line : line + lines].reshape(len(outer), -1))
    return of_weight.view(out_channels, *kernel, channels).permute(0, 3, 1, 2)


def _pair(padding: str | tuple[int, ...]) -> tuple[int, int]:
    return int(padding[1]), int(padding[2])
