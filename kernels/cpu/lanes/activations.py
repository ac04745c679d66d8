"""Activations of vectors in memory, chosen by a number at run time: compiled once for all nets."""

from ... import spec
from ...spec import CODES
from ..machine.jit import inner, select
from ..machine.vectors import LANE_BYTES, load, store
from ..numbers.activations import ACTIVATIONS

_BY_NAME = dict(zip(spec.ACTIVATIONS, spec.for_each(spec.ACTIVATIONS, ACTIVATIONS), strict=True))
RELU, IDENTITY = CODES["relu"], CODES["identity"]


def activate(real):
    """Function (code, z, slopes, n): σ of n vectors in place, and σ' beside it.

    The identity leaves its slopes alone.
    """

    def link(code, pair, others):
        @inner
        def activate_all(chosen, z, slopes, n):
            if chosen != code:
                others(chosen, z, slopes, n)
                return
            for e in range(0, n * LANE_BYTES, LANE_BYTES):
                h, slope = pair(load(z + e, real))
                store(z + e, h)
                store(slopes + e, slope)

        return activate_all

    @inner
    def nothing(chosen, z, slopes, n):
        pass

    chosen = nothing
    for name, activation in _BY_NAME.items():
        if CODES[name] != IDENTITY:
            chosen = link(CODES[name], activation[real].value_and_derivative, chosen)
    return chosen


def chain(real):
    """Function (code, slopes, g, n): g·σ' of n vectors in place."""

    @inner
    def chain_all(code, slopes, g, n):
        zero = real(0)
        if code == RELU:
            for e in range(0, n * LANE_BYTES, LANE_BYTES):
                # not a product: PyTorch drops an infinite g here too
                store(g + e, select(load(slopes + e, real) == zero, zero, load(g + e, real)))
        elif code != IDENTITY:
            for e in range(0, n * LANE_BYTES, LANE_BYTES):
                store(g + e, load(g + e, real) * load(slopes + e, real))

    return chain_all
