"""Builds `kernels.cpp` on first use and gives its operations their gradients."""

import os
import sys
from functools import cache
from pathlib import Path

import torch
from torch.utils.cpp_extension import load


@cache
def native():
    # The extension builder looks for `ninja` on the PATH, not beside Python.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    flags = ["-O3", "-march=native", "-ffast-math"]
    return load("demo_kernels", [str(Path(__file__).with_name("kernels.cpp"))], extra_cflags=flags)


class Convolution(torch.autograd.Function):
    """SiLU of the causal depthwise convolution: x [B,L,C], taps [K,C], bias [C]."""

    @staticmethod
    def forward(ctx, x, taps, bias):
        ctx.save_for_backward(x, taps, bias)
        return native().conv_forward(x, taps, bias)

    @staticmethod
    def backward(ctx, grad):
        return tuple(native().conv_backward(grad, *ctx.saved_tensors))


class Scan(torch.autograd.Function):
    """The recurrence with its skip: xbc [B,L,HP+2GN], dt [B,L,H], a and d [H]."""

    @staticmethod
    def forward(ctx, xbc, dt, a, d, groups):
        ctx.save_for_backward(xbc, dt, a, d)
        ctx.groups = groups
        return native().scan_forward(xbc, dt, a, d, groups)

    @staticmethod
    def backward(ctx, grad):
        return *native().scan_backward(grad, *ctx.saved_tensors, ctx.groups), None
