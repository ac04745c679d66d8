"""Parameters side by side, in the order and the type in which kernels read them: one launch."""

import torch
import triton
import triton.language as tl

from .plans import empty, launch

BLOCK = 1024


@triton.constexpr_function
def size_before(rows, cols, i):
    """Elements of the tensors before tensor ``i``."""
    return sum(r * c for r, c in zip(rows[:i], cols[:i], strict=True))


@triton.jit
def pack_kernel(
    tensors, out_ptr, ROWS: tl.constexpr, COLS: tl.constexpr, PRESENT: tl.constexpr,
    N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = the transposes of matrices one after the other, zeros for those that are not PRESENT.

    Shapes: tensor i [ROWS[i], COLS[i]]. Grid: tensors x blocks of BLOCK elements of the largest.
    """
    for i in tl.static_range(N):
        if tl.program_id(0) == i:
            SIZE: tl.constexpr = ROWS[i] * COLS[i]
            at = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
            inside = at < SIZE
            value = tl.zeros((BLOCK,), out_ptr.dtype.element_ty)
            if PRESENT[i]:
                source = at % ROWS[i] * COLS[i] + at // ROWS[i]
                value = tl.load(tensors[i] + source, mask=inside, other=0.0)
            tl.store(out_ptr + size_before(ROWS, COLS, i) + at, value, mask=inside)


def pack(tensors, shapes, dtype) -> torch.Tensor:
    """The transposes of matrices one after the other, as one vector of ``dtype``.

    Args:
        tensors: The matrices' elements in row-major order, or ``None`` for zeros; the first is a
            tensor.
        shapes: Rows and columns of each. One row: what lies in memory stays in its order.
        dtype: The type of the vector.
    """
    rows, cols = zip(*shapes, strict=True)
    sizes = [r * c for r, c in shapes]
    # in place of a missing one, which is not read, any
    pointers = tuple(tensors[0] if t is None else t.contiguous() for t in tensors)
    out = empty((sum(sizes),), tensors[0], dtype)
    launch(
        pack_kernel, (len(sizes), triton.cdiv(max(sizes), BLOCK)),
        pointers, out, ROWS=rows, COLS=cols, PRESENT=tuple(t is not None for t in tensors),
        N=len(sizes), BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return out
