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
        self.number, self.stamp = number, number << 32 | 1
        self.known = np.zeros(n_programs + 1, np.int64)
        self.told = told

    @property
    def time(self):
        return self.stamp & TIME

    def barrier(self):
        self.stamp += 1

    def release(self, address):
        message = self.told.get(address)
        message = self.known.copy() if message is None else np.maximum(message, self.known)
        message[self.number] = self.time
        self.told[address] = message

    def acquire(self, address):
        if address in self.told:
            self.known = np.maximum(self.known, self.told[address])
        self.barrier()

    def scalar(self, kind, storage, k):
        """Note a load or store of the one part ``k``, where that is all there is to do.

        Where another program, or this one since its last barrier, has been there before,
        :meth:`access` has to look; nothing is noted then.

        Returns:
            Whether it is noted.
        """
        before = ("writer", "atomic") if kind == LOAD else ("writer", "atomic", "reader")
        if not all(self._knows(storage, name, k) for name in before):
            return False
        if kind == STORE:
            storage.writer[k], storage.writer_tile[k] = self.stamp, ALL_THREADS
            return True
        reader = storage.reader.item(k)
        if reader >> 32 not in (0, self.number):
            storage.other_reader[k] = reader
        storage.reader[k], storage.reader_tile[k] = self.stamp, ALL_THREADS
        return True

    def _knows(self, storage, name, k):
        """Whether nobody, or this program before its last barrier alone, has touched a part so."""
        if not storage.touched(name):
            return True
        stamp = getattr(storage, name).item(k)
        if name == "reader" and storage.other_reader.item(k):
            return False
        return stamp == 0 or (stamp >> 32 == self.number and stamp != self.stamp)

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
            note_read(storage, self.stamp, k, tile)
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


MANY = 1000
"""Reads that a storage keeps before they are noted."""


def read_later(storage, stamp, addresses, pointers, size):
    """Note a read of what nobody has changed; it matters once somebody does."""
    storage.reads.append((stamp, addresses, pointers, size))
    if len(storage.reads) > MANY:
        note_reads(storage)


def note_reads(storage):
    """Note the reads that were kept for later."""
    for stamp, addresses, pointers, size in storage.reads:
        note_read(storage, stamp, storage.parts(addresses, size), tile_of(pointers))
    storage.reads.clear()


def note_read(storage, stamp, k, tile):
    """The parts ``k`` were read at a time of a program."""
    before = storage.reader[k]
    if before.any():
        again = before == stamp
        tile = np.where(again & (storage.reader_tile[k] != tile), ALL_THREADS, tile)
        foreign = (before >> 32 != stamp >> 32) & (before != 0)
        if foreign.any():
            storage.other_reader[k[foreign]] = before[foreign]
    storage.reader[k], storage.reader_tile[k] = stamp, tile
