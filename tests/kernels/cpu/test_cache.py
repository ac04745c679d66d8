"""Kernels on disk: what is loaded is what was asked for, whatever happens to disk and directory."""

import errno
import os
import random
import stat
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("numba")

from fastmlp.kernels.cpu.machine import cache, jit
from fastmlp.kernels.cpu.machine.digest import forget

linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems have other directories")


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """An empty cache directory of this process."""
    monkeypatch.setattr(jit.numba.config, "CACHE_DIR", str(tmp_path))
    return tmp_path / "fastmlp"


def make(value):
    """The kernel of one version of a program: all versions have one name, file and line."""

    def answer(x):
        return x + value

    return jit.kernel(answer)


def compiled(kernel):
    """Whether a kernel's call compiled it, and what it gave for 1."""
    result = kernel(1)
    return sum(kernel.stats.cache_misses.values()) > 0, result


def kernels(directory):
    return sorted(directory.glob("*.kernel"))


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def fill(path):
    with path.open("wb", 0) as file:
        while True:
            file.write(bytes(4096))


class TestOneFileAKernel:
    def test_another_process_loads_it(self, directory):
        assert compiled(make(1)) == (True, 2)
        assert compiled(make(1)) == (False, 2)
        assert len(kernels(directory)) == 1

    def test_another_version_is_another_kernel(self, directory):
        for value in (1, 2, 3):
            assert compiled(make(value)) == (True, 1 + value)
        for value in (3, 2, 1):
            assert compiled(make(value)) == (False, 1 + value)

    def test_argument_types_are_part_of_the_key(self, directory):
        kernel = make(1)
        assert kernel(1) == 2
        assert kernel(1.5) == 2.5
        assert len(kernels(directory)) == 2

    def test_a_file_under_another_ones_name_is_not_loaded(self, directory):
        compiled(make(1))
        first = kernels(directory)[0]
        compiled(make(2))
        second = next(path for path in kernels(directory) if path != first)
        second.write_bytes(first.read_bytes())
        assert compiled(make(2)) == (True, 3)
        assert compiled(make(2)) == (False, 3)

    def test_other_settings_of_numba_are_another_kernel(self, directory, monkeypatch):
        compiled(make(1))
        monkeypatch.setattr(jit.numba.config, "BOUNDSCHECK", 1)
        cache.platform.cache_clear()
        try:
            assert compiled(make(1)) == (True, 2)
        finally:
            cache.platform.cache_clear()

    def test_closures_of_one_name_have_symbols_of_their_own(self, directory):
        # numbered alike by two processes, they would be linked to each other in a third
        def names(value):
            def part(x):
                return x * value

            part = jit.inner(part)

            def whole(x):
                return part(x)

            for path in kernels(directory):
                path.unlink()
            kernel = jit.kernel(whole)
            kernel(1)
            inner = next(iter(part.overloads.values()))
            return inner.fndesc.mangled_name, next(iter(kernel.overloads.values())).fndesc

        (part2, whole2), (part3, whole3), (again, _) = names(2), names(3), names(2)
        assert part2 == again != part3
        assert whole2.mangled_name != whole3.mangled_name

    def test_loading_one_imports_nothing(self, directory):
        code = (
            "import sys, numpy, numba\n"
            "from fastmlp.kernels.cpu.machine import jit\n"
            "def total(n):\n"
            "    return numpy.empty(n).size\n"
            "kernel, before = jit.kernel(total), set(sys.modules)\n"
            "assert kernel(4) == 4\n"
            "new = {name for name in set(sys.modules) - before if name.startswith('numba.np')}\n"
            "print(sum(kernel.stats.cache_hits.values()), sorted(new))\n"
        )
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(directory.parent)}
        for expected in ("0 ['numba.np", "1 []\n"):
            result = subprocess.run(
                [sys.executable, "-c", code],
                env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert result.stdout.startswith(expected), result.stderr + result.stdout

    def test_what_cannot_be_told_apart_is_not_kept(self, directory):
        kernel = make(1)
        kernel._cache._sources = (object(),)
        assert compiled(kernel) == (True, 2)
        assert kernels(directory) == []


class TestDamage:
    def test_no_damaged_file_verifies(self, directory):
        compiled(make(1))
        path = kernels(directory)[0]
        whole, draw = path.read_bytes(), random.Random(0)
        for i in range(3000):
            damaged = bytearray(whole)
            at = draw.randrange(len(whole))
            if i % 4 == 0:
                damaged[at] ^= 1 << draw.randrange(8)
            elif i % 4 == 1:
                del damaged[at:]
            elif i % 4 == 2:
                n = min(512, len(whole) - at)
                damaged[at : at + n] = bytes(n)
            else:
                damaged[at:at] = draw.randbytes(draw.randrange(1, 64))
            if damaged != whole:  # zeros over zeros
                assert cache.verified(path.name, damaged) is None, (i, at)

    @pytest.mark.parametrize("damage", ["nothing in it", "cut", "one bit", "another program's"])
    def test_it_is_compiled_anew_and_replaced(self, directory, damage):
        compiled(make(1))
        path = kernels(directory)[0]
        whole = path.read_bytes()
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        path.write_bytes(
            {"nothing in it": b"", "cut": whole[:-1], "one bit": flipped}.get(damage, b"\x80\x05N.")
        )
        assert compiled(make(1)) == (True, 2)
        assert compiled(make(1)) == (False, 2)

    def test_what_verifies_and_cannot_be_rebuilt_is_compiled_anew(self, directory):
        compiled(make(1))
        cache.write(kernels(directory)[0], cache.dumps(("of another Numba",)))
        assert compiled(make(1)) == (True, 2)
        assert compiled(make(1)) == (False, 2)


class TestDisk:
    @pytest.mark.parametrize("call", ["fsync", "replace", "open"])
    def test_full_disk_leaves_nothing_half_done(self, call, directory, monkeypatch):
        compiled(make(1))
        with monkeypatch.context() as patch:
            open_ = os.open
            if call == "open":  # reading still works
                full_open = lambda path, flags, *a: (  # noqa: E731
                    full() if flags & os.O_CREAT else open_(path, flags, *a)
                )
                patch.setattr(os, "open", full_open)
            else:
                patch.setattr(os, call, full)
            assert compiled(make(2)) == (True, 3)  # the next version
            assert compiled(make(1)) == (False, 2)
        assert [path.suffix for path in directory.iterdir() if path.suffix != ".lock"] == [
            ".kernel"
        ]
        assert compiled(make(2)) == (True, 3)
        assert compiled(make(2)) == (False, 3)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
    @pytest.mark.parametrize("call", ["fsync", "replace"])
    def test_a_process_killed_while_it_writes(self, call, directory):
        compiled(make(1))
        if (child := os.fork()) == 0:
            setattr(os, call, lambda *_: os._exit(9))
            compiled(make(2))  # the next version
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert compiled(make(2)) == (True, 3)
        assert compiled(make(1)) == (False, 2)
        assert compiled(make(2)) == (False, 3)

    @linux
    def test_full_file_system(self, directory):
        directory.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "fastmlp-test", str(directory)]
        if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("only root may mount a small file system")
        try:
            compiled(make(1))
            filler = directory / "filler"
            with pytest.raises(OSError, match="space"):
                fill(filler)
            assert compiled(make(2)) == (True, 3)
            assert compiled(make(1)) == (False, 2)
            assert compiled(make(2)) == (True, 3)
            assert sorted(path.suffix for path in directory.iterdir()) in (
                ["", ".kernel", ".lock"],
                ["", ".kernel", ".lock", ".lock"],
            )
            filler.unlink()
            assert compiled(make(2)) == (True, 3)
            assert compiled(make(2)) == (False, 3)
        finally:
            subprocess.run(["umount", str(directory)], check=True)

    def test_a_directory_deleted_meanwhile_is_made_again(self, directory):
        for _ in range(2):
            assert compiled(make(1)) == (True, 2)
            assert compiled(make(1)) == (False, 2)
            for path in directory.iterdir():
                path.unlink()
            directory.rmdir()
            directory.parent.rmdir()

    def test_slow_renames_of_many_writers(self, directory, monkeypatch):
        replace, draw = os.replace, random.Random(0)

        def slow(source, target):
            time.sleep(draw.random() * 0.01)
            replace(source, target)

        monkeypatch.setattr(os, "replace", slow)
        for trial in range(50):
            # two variants of one kernel, five writers, one reader all the while
            payloads = {name: (name * (trial + 1)).encode() for name in ("a.kernel", "b.kernel")}
            names = ["a.kernel", "b.kernel", "a.kernel", "b.kernel", "a.kernel"]
            writers = [
                threading.Thread(target=cache.write, args=(directory / name, payloads[name]))
                for name in names
            ]
            for writer in writers:
                writer.start()
            earlier = {n: (n * trial).encode() if trial else None for n in payloads}
            while any(writer.is_alive() for writer in writers):
                for name, payload in payloads.items():
                    assert cache.read(directory / name) in (payload, earlier[name])
            for writer in writers:
                writer.join()
            assert {n: cache.read(directory / n) for n in payloads} == payloads
        assert sorted(path.name for path in directory.iterdir()) == ["a.kernel", "b.kernel"]

    def test_old_kernels_and_leftovers_go(self, directory):
        compiled(make(1))
        (used,) = kernels(directory)
        former, others = directory / "0123456789abcdef", directory / "user's own"
        for folder in (former, others):
            folder.mkdir()
            for name in ("k-1.py311.nbi", "k-1.py311.1.nbc"):
                (folder / name).touch()
                os.utime(folder / name, (time.time() - 91 * 86400,) * 2)
        (former / "k-2.py311.nbi").touch()  # in use
        unused, left = directory / "old.kernel", directory / "x.kernel.0.tmp"
        other = directory / "notes.txt"
        for path, age in ((unused, 91), (left, 2), (other, 1000), (used, 89)):
            path.touch()
            os.utime(path, (time.time() - age * 86400,) * 2)
        assert compiled(make(1)) == (False, 2)
        assert time.time() - used.stat().st_mtime < 3600  # it is in use
        compiled(make(2))
        assert not unused.exists()
        assert not left.exists()
        assert other.exists()
        assert used.exists()
        assert [path.name for path in former.iterdir()] == ["k-2.py311.nbi"]
        assert len(list(others.iterdir())) == 2
        os.utime(former / "k-2.py311.nbi", (time.time() - 91 * 86400,) * 2)
        compiled(make(3))
        assert not former.exists()


@pytest.mark.skipif(os.name != "posix", reason="Windows has no owners and modes")
class TestTrust:
    def test_what_everybody_may_write_is_not_read(self, directory):
        compiled(make(1))
        kernels(directory)[0].chmod(0o666)
        assert compiled(make(1)) == (True, 2)
        assert stat.S_IMODE(kernels(directory)[0].stat().st_mode) == 0o644

    def test_files_are_their_owners_to_write_whatever_the_mask(self, directory):
        for i, mask in enumerate((0o000, 0o077)):
            before = os.umask(mask)
            try:
                compiled(make(i))
            finally:
                os.umask(before)
            assert compiled(make(i)) == (False, 1 + i)
        assert {stat.S_IMODE(path.stat().st_mode) for path in kernels(directory)} <= {0o644, 0o600}

    def test_a_pipe_in_its_place_is_not_waited_for(self, directory):
        compiled(make(1))
        (path,) = kernels(directory)
        path.unlink()
        os.mkfifo(path)
        assert compiled(make(1)) == (True, 2)

    @pytest.mark.parametrize("named", [True, False])
    @pytest.mark.parametrize("mode", [0o755, 0o777])
    def test_another_users_kernels(self, named, mode, directory, monkeypatch):
        if os.geteuid() != 0:
            pytest.skip("only root may give files away")
        compiled(make(1))
        os.chown(kernels(directory)[0], 12345, 12345)
        directory.chmod(mode)
        base = directory.parent
        monkeypatch.setattr(cache, "_base", lambda: (base, named))
        is_read = named and mode == 0o755
        assert compiled(make(1)) == (not is_read, 2)


class TestTurns:
    @staticmethod
    def hold(kernel):
        """Take the turn of a kernel, as another process would; the file that is waited for."""
        path = kernel._cache._path((jit.types.int64,), kernel.targetctx.codegen())
        forget()
        assert kernel._cache._take_turn(path)
        assert kernel._cache._wait(path, kernel.targetctx) is None
        return path

    def test_who_comes_second_waits_and_loads(self, directory):
        elsewhere, results = make(1), []
        result = elsewhere._compiler.compile((jit.types.int64,), None)
        payload = cache.dumps(cache.reduced(result))
        path = self.hold(elsewhere)
        second = threading.Thread(target=lambda: results.append(compiled(make(1))))
        second.start()
        time.sleep(0.3)
        assert results == []
        cache.write(path, payload)
        second.join(30)
        assert results == [(False, 2)]
        elsewhere._cache.release()

    def test_who_ends_without_a_file_is_not_waited_for(self, directory):
        elsewhere, results = make(1), []
        self.hold(elsewhere)
        second = threading.Thread(target=lambda: results.append(compiled(make(1))))
        second.start()
        time.sleep(0.3)
        elsewhere._cache.release()
        second.join(30)
        assert results == [(True, 2)]

    def test_patience_ends(self, directory, monkeypatch):
        monkeypatch.setattr(cache, "PATIENCE", 0.3)
        holder = make(1)
        self.hold(holder)
        assert compiled(make(1)) == (True, 2)
        holder._cache.release()

    def test_the_turn_ends_with_an_error(self, directory):
        def wrong(x):
            return x.no_such_attribute

        kernel = jit.kernel(wrong)
        with pytest.raises(jit.numba.TypingError):
            kernel(1)
        assert kernel._cache._lock is None
        assert kernel._cache._unsay is None


@linux
class TestPlace:
    @pytest.fixture(autouse=True)
    def _environment(self, monkeypatch, tmp_path):
        monkeypatch.setattr(jit.numba.config, "CACHE_DIR", "")
        monkeypatch.setenv("HOME", str(tmp_path))
        self.home = tmp_path

    @pytest.mark.parametrize("value", ["", "rel", "~/cache", "./x"])
    def test_a_relative_directory_is_ignored(self, value, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache.user_cache_directory() == self.home / ".cache" / "fastmlp"

    def test_an_absolute_one_is_taken(self, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", "/some where/é")
        assert str(cache.user_cache_directory()) == "/some where/é/fastmlp"

    def test_a_relative_home_is_none(self, monkeypatch):
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv("HOME", "here")
        assert cache.user_cache_directory() is None
