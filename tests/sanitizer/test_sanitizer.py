"""Planted faults are found, and nothing is in their clean twins."""

import pytest
import torch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
if triton.knobs.runtime.interpret is False:
    pytest.skip("kernels are compiled here: nothing is interpreted", allow_module_level=True)

from sanitizer import findings, plugin  # noqa: E402

BLOCK = 32


@triton.jit
def copy_kernel(x_ptr, y_ptr, n, SHIFT: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n if MASKED else i >= 0
    tl.store(y_ptr + i, tl.load(x_ptr + i + SHIFT, mask=inside, other=0.0), mask=inside)


@triton.jit
def fill_kernel(y_ptr, OWN: tl.constexpr, BLOCK: tl.constexpr):
    first = tl.program_id(0) * BLOCK if OWN else 0
    tl.store(y_ptr + first + tl.arange(0, BLOCK), tl.zeros((BLOCK,), tl.float32))


@triton.jit
def neighbour_kernel(y_ptr, z_ptr, AWAY: tl.constexpr, BLOCK: tl.constexpr):
    program, i = tl.program_id(0), tl.arange(0, BLOCK)
    tl.store(y_ptr + program * BLOCK + i, tl.zeros((BLOCK,), tl.float32))
    tl.debug_barrier()
    other = (program + AWAY) % tl.num_programs(0)
    tl.store(z_ptr + program * BLOCK + i, tl.load(y_ptr + other * BLOCK + i))


@triton.jit
def later_store_kernel(x_ptr, TURN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    here = tl.program_id(0) * BLOCK
    other = (tl.program_id(0) + TURN) % tl.num_programs(0) * BLOCK
    value = tl.load(x_ptr + other + i)
    tl.load(x_ptr + here + i)
    tl.store(x_ptr + here + i, value)


@triton.jit
def reverse_kernel(y_ptr, z_ptr, BARRIER: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y_ptr + i, i.to(tl.float32))
    if BARRIER:
        tl.debug_barrier()
    tl.store(z_ptr + i, tl.load(y_ptr + BLOCK - 1 - i))


@triton.jit
def reverse_in_place_kernel(y_ptr, BARRIER: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    value = tl.load(y_ptr + BLOCK - 1 - i)
    tl.load(y_ptr + i)
    if BARRIER:
        tl.debug_barrier()
    tl.store(y_ptr + i, value)


@triton.jit
def scalar_kernel(y_ptr, BARRIER: tl.constexpr):
    value = tl.load(y_ptr)
    if BARRIER:
        tl.debug_barrier()
    tl.store(y_ptr, value + 1.0)
    if BARRIER:
        tl.debug_barrier()
    tl.store(y_ptr + 1, tl.load(y_ptr))


@triton.jit
def scalar_of_another_kernel(y_ptr, z_ptr, AWAY: tl.constexpr, LATER: tl.constexpr):
    program = tl.program_id(0)
    other = (program + AWAY) % tl.num_programs(0)
    if LATER:
        tl.store(z_ptr + program, tl.load(y_ptr + other))
        tl.debug_barrier()
    tl.store(y_ptr + program, 1.0)
    tl.debug_barrier()
    if not LATER:
        tl.store(z_ptr + program, tl.load(y_ptr + other))


@triton.jit
def last_sums_kernel(
    pieces_ptr, counter_ptr, y_ptr, SEM: tl.constexpr, SCOPE: tl.constexpr, BARRIER: tl.constexpr,
    PROGRAMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The last program to finish sums what all have written, and sets the counter back."""
    program, i = tl.program_id(0), tl.arange(0, BLOCK)
    tl.store(pieces_ptr + program * BLOCK + i, tl.zeros((BLOCK,), tl.float32) + program)
    if BARRIER:
        tl.debug_barrier()
    before = tl.atomic_add(counter_ptr, 1, sem=SEM, scope=SCOPE)
    if before == PROGRAMS - 1:
        total = tl.zeros((BLOCK,), tl.float32)
        for k in range(PROGRAMS):
            total += tl.load(pieces_ptr + k * BLOCK + i)
        tl.store(y_ptr + i, total)
        tl.store(counter_ptr, 0)


def found(kernel, *arguments, programs=4, **constants):
    """What is found in one launch."""
    with findings.collected() as lines:
        try:
            kernel[(programs,)](*arguments, **constants)
        except Exception as error:
            # the interpreter has an error of its own around that of what it runs
            if "OutOfBoundsError" not in str(error):
                raise
    return "\n".join(lines)


def tile(blocks=4):
    return torch.zeros(blocks * BLOCK)


def test_out_of_bounds_by_one():
    x, y = tile(), tile()
    assert not found(copy_kernel, x, y, 128, SHIFT=0, MASKED=False, BLOCK=BLOCK)
    lines = found(copy_kernel, x, y, 128, SHIFT=1, MASKED=False, BLOCK=BLOCK)
    assert "copy_kernel at test_sanitizer.py:" in lines
    assert "load out of bounds, 1 of 32 elements: argument x_ptr, offset 128" in lines
    assert "program (3, 0, 0)" in lines
    lines = found(copy_kernel, x, y, 128, SHIFT=-1, MASKED=False, BLOCK=BLOCK)
    assert "argument x_ptr, offset -1" in lines


def test_a_tail_without_a_mask():
    x, y = torch.zeros(100), torch.zeros(100)
    assert not found(copy_kernel, x, y, 100, SHIFT=0, MASKED=True, BLOCK=BLOCK)
    lines = found(copy_kernel, torch.zeros(128), y, 100, SHIFT=0, MASKED=False, BLOCK=BLOCK)
    assert "store out of bounds, 28 of 32 elements: argument y_ptr, offset 100" in lines


def test_a_pointer_that_ends_in_another_argument():
    both = torch.zeros(2, 1 << 12)
    x, y = both[0].clone(), both[1].clone()
    apart = (y.data_ptr() - x.data_ptr()) // 4
    lines = found(copy_kernel, x, x, 32, SHIFT=apart, MASKED=True, BLOCK=BLOCK, programs=1)
    assert "load out of bounds, 32 of 32 elements: argument x_ptr" in lines


def test_an_empty_argument():
    empty = torch.zeros(0)
    assert not found(copy_kernel, empty, empty, 0, SHIFT=0, MASKED=True, BLOCK=BLOCK)
    lines = found(copy_kernel, empty, empty, 1, SHIFT=0, MASKED=True, BLOCK=BLOCK)
    assert "load out of bounds, 1 of 1 elements: argument x_ptr = y_ptr" in lines


def test_two_programs_on_one_address():
    assert not found(fill_kernel, tile(), OWN=True, BLOCK=BLOCK)
    lines = found(fill_kernel, tile(), OWN=False, BLOCK=BLOCK)
    assert "fill_kernel at " in lines
    assert "store of what another program stores: argument y_ptr, offset 0" in lines


def test_a_read_of_another_programs_output():
    assert not found(neighbour_kernel, tile(), tile(), AWAY=0, BLOCK=BLOCK)
    lines = found(neighbour_kernel, tile(), tile(), AWAY=1, BLOCK=BLOCK)
    assert "load of what another program stores: argument y_ptr" in lines


def test_a_store_over_what_another_program_reads():
    assert not found(later_store_kernel, tile(), TURN=0, BLOCK=BLOCK)
    # in whatever order they run, though each program reads its own block last
    assert "of what another program" in found(later_store_kernel, tile(), TURN=1, BLOCK=BLOCK)


def test_a_missing_barrier_before_a_load():
    y, z = tile(1), tile(1)
    assert not found(reverse_kernel, y, z, BARRIER=True, BLOCK=BLOCK, programs=1)
    lines = found(reverse_kernel, y, z, BARRIER=False, BLOCK=BLOCK, programs=1)
    assert "load after a store, no barrier between: argument y_ptr" in lines


@pytest.mark.parametrize("many", [0, 1000], ids=["noted_at_once", "noted_later"])
def test_a_missing_barrier_before_a_store(many, monkeypatch):
    from . import races

    monkeypatch.setattr(races, "MANY", many)
    assert not found(reverse_in_place_kernel, tile(1), BARRIER=True, BLOCK=BLOCK, programs=1)
    lines = found(reverse_in_place_kernel, tile(1), BARRIER=False, BLOCK=BLOCK, programs=1)
    assert "store after a load, no barrier between: argument y_ptr" in lines


def test_a_scalar_is_every_threads():
    assert not found(scalar_kernel, tile(1), BARRIER=True, programs=1)
    lines = found(scalar_kernel, tile(1), BARRIER=False, programs=1)
    assert "store after a load, no barrier between: argument y_ptr, offset 0" in lines
    assert "load after a store, no barrier between: argument y_ptr, offset 0" in lines


@pytest.mark.parametrize("later", [False, True], ids=["stored_first", "read_first"])
def test_a_scalar_of_another_program(later):
    assert not found(scalar_of_another_kernel, tile(), tile(), AWAY=0, LATER=later)
    lines = found(scalar_of_another_kernel, tile(), tile(), AWAY=1, LATER=later)
    assert "of what another program" in lines


UNORDERED = "load of what another program stores: argument pieces_ptr"
# order and scope of the atomic, whether a barrier comes before it, and what is found
COUNTERS = {
    "as it should be": ("acq_rel", "gpu", True, None),
    "no order": ("relaxed", "gpu", True, UNORDERED),
    "release alone": ("release", "gpu", True, UNORDERED),
    "acquire alone": ("acquire", "gpu", True, UNORDERED),
    "of one block": ("acq_rel", "cta", True, UNORDERED),
    # the thread that counts may be ahead of those that store
    "no barrier": ("acq_rel", "gpu", False, UNORDERED),
}


@pytest.mark.parametrize("name", COUNTERS)
def test_the_last_program_sums_what_all_have_written(name):
    order, scope, barrier, fault = COUNTERS[name]
    constants = {"SEM": order, "SCOPE": scope, "BARRIER": barrier, "PROGRAMS": 5}
    y, counter = tile(1), torch.zeros(1, dtype=torch.int32)
    lines = found(last_sums_kernel, tile(5), counter, y, **constants, BLOCK=BLOCK, programs=5)
    assert lines == "" if fault is None else fault in lines
    assert y.eq(10).all()
    assert counter == 0


def test_programs_run_in_the_order_of_the_seed():
    from . import watch

    def orders():
        return [watch.Order.draw(20) for _ in range(3)]

    first = orders()
    assert all(sorted(order) == list(range(20)) for order in first)
    assert first[0] != first[1] != list(range(20))
    watch.Order.launch -= 3
    assert orders() == first


def test_a_finding_fails_the_test():
    found(fill_kernel, tile(), OWN=False, BLOCK=BLOCK)
    judged = plugin.Sanitizer._judged(None)
    next(judged)
    fill_kernel[(2,)](tile(), OWN=False, BLOCK=BLOCK)
    with pytest.raises(pytest.fail.Exception, match="the sanitizer found\nfill_kernel at"):
        next(judged)
