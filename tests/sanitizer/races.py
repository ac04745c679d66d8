"""Who may touch what without waiting: between programs, and between the threads of one.

Time of a program is counted in barriers. A *stamp* is a program's number, from 1, in the upper half
of 64 bits, and its time in the lower. An atomic with release tells, at its address, all that
happened in its program before the last barrier (not what other threads did since), and all that the
program knew of others; an atomic with acquire learns what was told there. Accesses of two programs
are ordered where the later one knows the time of the earlier one; all others race, whatever the
order in which the interpreter happens to run them.

Within a program, which thread has which element is known to be the same only for two accesses with
the very same tile of addresses. Anything else, a scalar included, which all threads load and one
stores, needs a barrier between a store and what comes before or after it. An atomic with acquire
ends with one: its result is handed to all threads.
"""

import numpy as np

LOAD, STORE, ATOMIC = "load", "store", "atomic"
TIME = (1 << 32) - 1
# tile of a scalar, and of an address that several tiles have read
ALL_THREADS = 0


def tile_of(pointers):
    """A number for a tile of addresses in its order."""
    if pointers.size == 1:
        return ALL_THREADS
    return hash((pointers.shape, pointers.tobytes())) | 1


class Program:
    """A running program: its stamp, and the times of the others that it knows."""

    def __init__(self, number, n_programs, told):
        self.number, self.time = number, 1
        self.known = np.zeros(n_programs + 1, np.int64)
        self.told = told

    @property
    def stamp(self):
        return self.number << 32 | self.time

    def barrier(self):
        self.time += 1

    def release(self, address):
        message = self.told.get(address)
        message = self.known.copy() if message is None else np.maximum(message, self.known)
        message[self.number] = self.time
        self.told[address] = message

    def acquire(self, address):
        if address in self.told:
            self.known = np.maximum(self.known, self.told[address])
        self.barrier()

    def access(self, kind, storage, k, tile):
        """Note an access to the parts ``k``; yield what is wrong: text, where, whose stamps."""
        if storage.touched("writer"):
            stamps = storage.writer[k]
            if stamps.any():
                yield from self._others(f"{kind} of what another program stores", stamps)
                if kind != ATOMIC:
                    mine = stamps == self.stamp
                    # a second scalar store is the same thread's
                    apart = storage.writer_tile[k] != tile
                    apart |= tile == ALL_THREADS and kind == LOAD
                    yield f"{kind} after a store, no barrier between", mine & apart, stamps
        if kind != ATOMIC and storage.touched("atomic"):
            yield from self._others(
                f"{kind} of what another program has an atomic on", storage.atomic[k]
            )
        if kind != LOAD and storage.touched("reader"):
            stamps = storage.reader[k]
            what = f"{kind} of what another program loads"
            yield from self._others(what, stamps)
            yield from self._others(what, storage.other_reader[k])
            if kind == STORE:
                tiles = storage.reader_tile[k]
                apart = (tiles != tile) | (tiles == ALL_THREADS)
                apart &= stamps == self.stamp
                yield "store after a load, no barrier between", apart, stamps
        if kind == LOAD:
            self._read(storage, k, tile)
        elif kind == STORE:
            if k.size > 1 and (counts := np.bincount(k - k.min())).max() > 1:
                twice = counts[k - k.min()] > 1
                yield "one store with the same address twice", twice, np.full(k.shape, self.stamp)
            storage.writer[k], storage.writer_tile[k] = self.stamp, tile
        else:
            storage.atomic[k] = self.stamp

    def _others(self, what, stamps):
        programs = stamps >> 32
        racing = (programs != self.number) & (stamps & TIME >= self.known[programs])
        yield what, racing & (stamps != 0), stamps

    def _read(self, storage, k, tile):
        before = storage.reader[k]
        if before.any():
            again = before == self.stamp
            tile = np.where(again & (storage.reader_tile[k] != tile), ALL_THREADS, tile)
            foreign = (before >> 32 != self.number) & (before != 0)
            if foreign.any():
                storage.other_reader[k[foreign]] = before[foreign]
        storage.reader[k], storage.reader_tile[k] = self.stamp, tile
