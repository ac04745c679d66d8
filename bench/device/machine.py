"""Which machine this is: card, driver, versions, clocks."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("bench", "fastmlp", "kernels", "tests")

CLOCKS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "utilization.gpu")
CARD = ("name", "driver_version", "memory.total", "clocks.max.sm", "clocks.max.mem", "power.limit")
PACKAGES = ("fastmlp", "torch", "triton", "numba", "numpy", "jax", "pytest", "pytest-xdist",
            "pytest-timeout")  # fmt: skip
REQUIRED = ("torch", "numpy", "triton", "numba")


def nvidia_smi(fields, seconds=5):
    """Some fields of the first card; a message where they cannot be had."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"nvidia-smi": f"{type(error).__name__}: {error}"}
    values = done.stdout.strip().split(", ")
    if done.returncode or len(values) != len(fields):
        return {"nvidia-smi": f"status {done.returncode}: {(done.stderr or done.stdout)[:200]}"}
    return dict(zip(fields, values, strict=True))


def versions():
    """Version of each package, ``None`` where it is missing; nothing is imported."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def digest_of_sources():
    """What a bare copy, which has no commit, is of: equal for equal files of Python."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def basics():
    """What is known without importing anything."""
    return {
        "versions": {"python": platform.python_version(), **versions()},
        "os": platform.platform(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "sources": digest_of_sources(),
    }


def run(report):
    """The step: what PyTorch sees; without a device no other step has anything to do."""
    import common
    import torch

    if not report.dry and not torch.cuda.is_available():
        reason = "PyTorch finds no CUDA device (--dry runs every step without one)"
        report.figure("machine.json", device=reason)
        report.send({"no_device": reason})
        return
    report.figure("machine.json", metadata=common.metadata(torch.device(report.device)))
    if report.dry:
        report.figure("machine.json", device="none: dry run, Triton's interpreter on CPU tensors")
        return
    card = torch.cuda.get_device_properties(0)
    report.figure(
        "machine.json",
        device=card.name,
        compute_capability=f"{card.major}.{card.minor}",
        multiprocessors=card.multi_processor_count,
        memory_bytes=card.total_memory,
        l2_bytes=getattr(card, "L2_cache_size", None),
        cuda=torch.version.cuda,
    )
