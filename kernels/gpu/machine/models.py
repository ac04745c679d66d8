"""What a launcher does for one model, done for many of one structure: a leading model axis.

A launcher is called with the tensors of the first model. Meanwhile what it allocates is allocated
for all models and what it launches is launched for all: a model's part of a tensor lies one step
behind that of the model before, no step where all share their rows, and the models are one more
dimension of every grid. Each program does what it does for one model alone, so that a model's bits
are those of its own call.
"""

import threading

import torch
import triton
import triton.language as tl

from .keys import Values
from .launch import INTERPRET

MAX_MODELS = 65535
"""Models of a launch: CUDA's limit for the third dimension of a grid."""

_local = threading.local()


@triton.jit
def each_kernel(
    before, pointers, after, first, TUPLES: tl.constexpr, KERNEL: tl.constexpr,
    CONSTANTS: tl.constexpr,
):  # fmt: skip
    """KERNEL for the models from ``first`` on.

    Its arguments are those before its tuple of pointers, this, if there is one of TUPLES, and those
    after: pairs of what is the first model's and of the elements from there to the next model's,
    ``None`` of what is no pointer. Grid: KERNEL's, folded to two dimensions, x models.
    """
    model = first + tl.program_id(2).to(tl.int64)
    # All in the call: Triton assigns, compares and returns no tuple that has None in it. And its
    # comprehensions do not go over constants.
    KERNEL(
        *[
            None if pair[0] is None
            else pair[0] if pair[1] is None
            else pair[0] + model * pair[1]
            for pair in before
        ],
        *[
            [None if pair[0] is None else pair[0] + model * pair[1] for pair in pointers]
            for _ in (0,)[:TUPLES]
        ],
        *[
            None if pair[0] is None
            else pair[0] if pair[1] is None
            else pair[0] + model * pair[1]
            for pair in after
        ],
        *[
            CONSTANTS[i]
            for i in (
                0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19,
            )[: len(CONSTANTS)]
        ],
    )  # fmt: skip


class Models:
    """The models of a launcher that is called inside.

    Args:
        n: How many there are.
        tensors: What the launcher takes, ``None`` among it. Shape ``[n, …]``, or ``[1, …]`` of what
            all models share.

    Attributes:
        first: The tensors of the first model, for the launcher.
    """

    def __init__(self, n, tensors):
        self._n, self._wholes = n, {}
        self.first = [None if t is None else self._of_first(_laid_out(t)) for t in tensors]

    def __enter__(self):
        _local.models = self
        return self

    def __exit__(self, *_):
        _local.models = None

    def _of_first(self, whole):
        if _memory(whole) in self._wholes:  # of an address there nobody could say whose it is
            whole = whole.clone()
        self._wholes[_memory(whole)] = whole
        return whole[0]

    def allocated(self, shape, x, dtype):
        """Uninitialized memory for all models, and the part of the first."""
        whole = torch.empty((self._n, *shape), device=x.device, dtype=dtype)
        return whole, self._of_first(whole)

    def whole(self, t):
        """What a launcher returned for the first model, of all ``[n, …]``."""
        whole = self._wholes[_memory(t)]
        strides = whole.stride(0), *t.stride()
        return whole.as_strided((self._n, *t.shape), strides, t.storage_offset())

    def _paired(self, arguments):
        """Each argument and the elements from that of one model to that of the next."""
        return tuple((argument, self._step(argument)) for argument in arguments)

    def _step(self, argument):
        if not isinstance(argument, torch.Tensor):
            return None
        whole = self._wholes[_memory(argument)]
        return whole.stride(0) if len(whole) > 1 else 0

    def launch(self, run, kernel, grid, *arguments, **constants):
        """As :func:`.plans.launch`, by which ``run`` launches, for all models."""
        if len(grid) == 3:
            grid, constants["FOLDED"] = (grid[0], grid[1] * grid[2]), True
        names = kernel.arg_names[len(arguments) :]
        values = [constants.pop(name) for name in names]
        # the compiler takes tuples among them apart unless they are wrapped
        values = tuple(values if INTERPRET else map(tl.constexpr, values))
        tuples = [i for i, argument in enumerate(arguments) if isinstance(argument, tuple)]
        constants |= {"TUPLES": len(tuples), "KERNEL": kernel, "CONSTANTS": Values(values)}
        at = tuples[0] if tuples else len(arguments)
        pointers = arguments[at] if tuples else ()
        parts = [*map(self._paired, (arguments[:at], pointers, arguments[at + 1 :]))]
        for first in range(0, self._n, MAX_MODELS):
            n = min(MAX_MODELS, self._n - first)
            whole = (*(*grid, 1)[:2], n)
            run(each_kernel, whole, *parts, first, **constants)


def _laid_out(t):
    """A tensor [n, …] in contiguous memory, or of contiguous parts that are one."""
    return t if t.stride(0) == 0 and t[0].is_contiguous() else t.contiguous()


def _memory(t):
    return t.untyped_storage().data_ptr()


def here():
    """The models of the launcher that is called, ``None`` where it is called for one."""
    return getattr(_local, "models", None)
