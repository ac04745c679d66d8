"""Launch settings of every kernel, and what launchers share: device context, dtypes, grid sizes.

Sizes depend on the shape of the data alone wherever they decide the order of a sum, so that results
are the same bit for bit on every device. Only kernels with independent rows look at the device.
"""

import contextlib
import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction


@triton.jit
def _probe_kernel():
    pass


# Triton decides between compiler and interpreter when a kernel is decorated
INTERPRET = isinstance(_probe_kernel, InterpretedFunction)


class Config(NamedTuple):
    """Tile of one program, ``rows`` x ``cols`` elements, and the warps that share it."""

    rows: int
    cols: int
    warps: int


# Tiles are chosen by the instruction counts of bench/static_cost.py; the comments say what binds.
CONFIGS = {
    "elementwise_mlp_fwd": Config(rows=1, cols=2048, warps=4),
    "elementwise_mlp_bwd_x": Config(rows=1, cols=2048, warps=4),
    # four elements a thread: two accumulators a unit and element leave no registers for more
    "elementwise_mlp_bwd_params": Config(rows=1, cols=512, warps=4),
    # 16 columns put four lanes on a row, so that the sum over features is mostly within a thread
    "additive_mlp_fwd": Config(rows=256, cols=16, warps=4),
    "additive_mlp_fwd_many_out": Config(rows=32, cols=16, warps=4),
    "additive_mlp_bwd_x": Config(rows=32, cols=64, warps=4),
    "additive_mlp_bwd_params": Config(rows=8, cols=64, warps=4),
    "additive_mlp_bwd_readout": Config(rows=32, cols=16, warps=4),
    # eight elements a thread share the loads of a unit's parameters
    "general_fwd": Config(rows=64, cols=16, warps=4),
    "general_fwd_many_out": Config(rows=16, cols=16, warps=4),
    "general_bwd_x": Config(rows=16, cols=64, warps=4),
    # two elements a thread: three accumulators for each and each of up to 16 units
    "general_bwd_params": Config(rows=4, cols=64, warps=4),
    "general_bwd_readout": Config(rows=16, cols=16, warps=4),
    "sine_sum_fwd": Config(rows=1, cols=2048, warps=4),
    "sine_sum_bwd_x": Config(rows=1, cols=2048, warps=4),
    "sine_sum_bwd_params": Config(rows=1, cols=512, warps=4),
    "piecewise_linear_fwd": Config(rows=1, cols=1024, warps=4),
    "piecewise_linear_bwd_x": Config(rows=1, cols=1024, warps=4),
    # 2 x 32 accumulators a thread
    "piecewise_linear_bwd_tables": Config(rows=256, cols=16, warps=4),
    "sum_pieces": Config(rows=32, cols=32, warps=4),
    # for layers of up to 16; wider ones get fewer rows: see mlp_config
    "mlp_fwd": Config(rows=128, cols=16, warps=4),
    # both layers' values and slopes are kept: twice the threads share them
    "mlp_bwd": Config(rows=64, cols=16, warps=8),
}

# widest subnet whose breakpoints and coefficients stay in registers (two a unit, four in float64)
MAX_CANONICAL_UNITS = {tl.float32: 32, tl.float64: 8}
# hidden units per program of a parameter gradient: 2 x 16 accumulators x 4 elements a thread are
# what fits into 255 registers; in float64 all take two
MAX_UNITS_PER_PROGRAM = {tl.float32: 16, tl.float64: 8}
# the like for general subnets: 3 x 14 accumulators x 2 elements a thread, and 28 parameters
MAX_GENERAL_UNITS = 14
# waves per program of a parameter gradient: up to 3 x 8 accumulators x 4 elements a thread
MAX_WAVES_PER_PROGRAM = {tl.float32: 8, tl.float64: 4}
# waves read at a time where only their largest frequency matters
BLOCK_WAVES = 128
# fewer elements than this are dealt out in quarter tiles
FULL_TILE_ELEMENTS = 1 << 20
# programs that walk over the rows, per multiprocessor
PROGRAMS_PER_SM = 8
# rows at a time where a single column is summed
SUM_BLOCK = 512
# outputs per program where there are several
OUT_PER_PROGRAM = 8


def config_for(name: str, compute: tl.dtype) -> Config:
    """Tile of a kernel: half the size in float64, where each value takes two registers."""
    config = CONFIGS[name]
    if compute != tl.float64:
        return config
    if config.rows == 1:
        return config._replace(cols=config.cols // 2)
    return config._replace(rows=config.rows // 2)


def mlp_config(name: str, widths: tuple[int, ...], compute: tl.dtype) -> Config:
    """Tile of a whole net by its widest layer: about as many values, 16 rows at least."""
    config = config_for(name, compute)
    widest = max(16, triton.next_power_of_2(max(widths)))
    rows = max(16, config.rows * 16 // widest)
    return Config(rows=rows, cols=widest, warps=config.warps if widest < 128 else 8)


def compute_dtype(out_dtype: torch.dtype) -> tuple[torch.dtype, tl.dtype]:
    """Type of the arithmetic inside a kernel, for torch and for Triton."""
    if out_dtype == torch.float64:
        return torch.float64, tl.float64
    return torch.float32, tl.float32


def result_dtype(*tensors: torch.Tensor | None) -> torch.dtype:
    """Promoted dtype of the tensors that exist."""
    dtypes = [t.dtype for t in tensors if t is not None]
    return functools.reduce(torch.promote_types, dtypes)


def contiguous(*tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """Each tensor in row-major order; None stays None."""
    return tuple(None if t is None else t.contiguous() for t in tensors)


def unit_column_stride(x: torch.Tensor) -> torch.Tensor:
    """A matrix whose rows have no gaps; rows themselves may be apart or repeated."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def device_of(x: torch.Tensor):
    """Context in which kernels run on the device of ``x``."""
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(x.device)


@functools.cache
def _n_multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def walking_programs(x: torch.Tensor, n_tiles: int, per_sm: int = PROGRAMS_PER_SM) -> int:
    """Programs for a kernel whose programs each walk over many tiles of independent rows."""
    if not x.is_cuda:
        return min(n_tiles, 2)
    return min(n_tiles, per_sm * _n_multiprocessors(x.device.index))


def block_of(n: int, largest: int) -> int:
    """Smallest power of two that covers ``n``, at most ``largest``."""
    return min(triton.next_power_of_2(n), largest)
