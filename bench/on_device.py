"""Spend some seconds of a CUDA device on what tells most, and write each result as it comes.

    python bench/on_device.py --seconds 400 --out DIR
    python bench/on_device.py --seconds 300 --out DIR --only tests,alone,host
    python bench/on_device.py --dry --seconds 60 --out DIR

Every step is a process of its own with a share of the seconds; what it does not use goes to the
steps after it. One that hangs is killed with all that it started, one that dies is reported, and
the rest goes on. Ctrl-C writes the summary. With --dry every step runs at tiny sizes in Triton's
interpreter, and no figure is one of a device: files and figures say so.

DIR gets seven files, each below 16 MiB. Whatever happens each is whole at every moment, the JSON
files included: a file is written beside itself, then put in its place.
  machine.json  card, driver, versions, clocks before and after
  tests.txt     a line per failing test as it fails; whether it fails alone too
  ops.json      the self-test; floors of this machine; kernel time (CUDA graph) and eager time
  host.json     what a call costs besides its kernels
  fit.json      whole training runs beside JAX; Levenberg–Marquardt
  tuning.json   sweeps of CONFIGS of kernels/gpu/machine/launch.py
  summary.md    all of it to read, beside the goals; what was cut

The exit status is 0 when every file is written, whatever the figures; 1 without a device, without
a package that all needs, or where a file could not be written.
"""

import argparse
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from device import machine, summary
from device.driver import Driver, Step
from device.files import Files

ROOT = Path(__file__).resolve().parent.parent

# most telling first
STEPS = (
    Step("machine", "device.machine", 2, "card, driver, versions", 2),
    Step("self-test", "device.self_test", 10, "every op on the device against float64", 8),
    Step("tests", "device.failing", 42, "tests that touch the device, side by side", 8),
    Step("ops", "device.ops", 30, "kernel and eager time of every op beside its peers; floors", 16),
    Step("alone", "device.alone", 12, "failing tests again, one at a time", 2),
    Step("host", "device.host", 6, "what a call costs besides its kernels", 8),
    Step("fit", "device.training", 14, "whole training runs beside JAX; Levenberg–Marquardt", 9),
    Step("tuning", "device.tuning", 14, "sweeps of CONFIGS for the main kernels", 7),
)


def say(line):
    """Print a line of progress; where that fails, a full disk say, the run goes on."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


def missing_packages():
    """What has to be there and is not."""
    return [name for name in machine.REQUIRED if importlib.util.find_spec(name) is None]


def prepare(seconds):
    """See to it that the steps import this checkout, installed or not; why it is not."""
    message = install(seconds)
    if message is not None:
        path = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([path] if path else [])])
        message += "; the steps import it from where it is"
    return message


def install(seconds):
    """Install this checkout where another, or none, is; the message if that fails."""
    spec = importlib.util.find_spec("fastmlp")
    if spec is not None and spec.origin and Path(spec.origin).is_relative_to(ROOT):
        return None
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps",
               "--no-build-isolation", "--disable-pip-version-check", "-e", str(ROOT)]  # fmt: skip
    say(f"install: {' '.join(command)}")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"`{' '.join(command)}` took over {seconds:.0f} s"
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        return f"`{' '.join(command)}` failed: {lines[-1]}"
    return None


def parse(argv, steps):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(step.name for step in steps)
    add = parser.add_argument
    add("--seconds", type=float, default=400, help="wall seconds for everything (default 400)")
    add("--out", type=Path, metavar="DIR", help="folder of the results; made if need be")
    add("--only", metavar="STEP,…", help=f"some steps, of {names}; machine is always run")
    add("--dry", action="store_true", help="no device: the interpreter, tiny sizes")
    add("--list", action="store_true", help="name the steps and their seconds, and stop")
    options = parser.parse_args(argv)
    wanted = options.only.split(",") if options.only else [step.name for step in steps]
    known = names.split(", ")
    for name in wanted:
        if name not in known:
            parser.error(f"--only must be some of {names}, got {name!r}")
    if options.seconds < 5:
        parser.error(f"--seconds must be at least 5, got {options.seconds:g}")
    if options.out is None and not options.list:
        parser.error("--out names the folder of the results")
    # what is measured says on what
    return options, [step for step in steps if step.name in ("machine", *wanted)]


def main(argv=None, steps=STEPS):
    """Run from the command line; return the exit status.

    Args:
        argv: Arguments, the command line's by default.
        steps: What there is to run: tests put steps of their own among them, whose modules the
            environment's ``PYTHONPATH`` finds.
    """
    began = time.monotonic()
    options, chosen = parse(argv, steps)
    if options.list:
        weights = [step.weight(options.dry) for step in chosen]
        for step, weight in zip(chosen, weights, strict=True):
            say(f"{step.name:<10}{options.seconds * weight / sum(weights):>5.0f} s  {step.about}")
        return 0
    # the clocks afterwards, the summary, and a margin for a busy machine
    end = began + options.seconds - min(5.0, options.seconds / 10)
    about = {"dry": options.dry, "seconds": options.seconds, "steps": [s.name for s in chosen]}
    files = Files(options.out, about, say)
    driver = Driver(options.dry, files, say)
    files.add("machine.json", machine.basics())
    status, before = 0, signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if missing := missing_packages():
            driver.no_device = f"missing here: {', '.join(missing)}"
        elif message := prepare(options.seconds / 4):
            say(message)
            files.add("machine.json", {"install": message})
        if not options.dry:
            files.add("machine.json", machine.nvidia_smi(machine.CARD))
            files.add("machine.json", {"clocks_before": machine.nvidia_smi(machine.CLOCKS)})
        driver.run(chosen, end)
    except KeyboardInterrupt:
        driver.cuts.append("interrupted: what came after was not run")
        say(driver.cuts[-1])
    signal.signal(signal.SIGTERM, before)
    driver.stop()
    if not options.dry:
        files.add("machine.json", {"clocks_after": machine.nvidia_smi(machine.CLOCKS, 2)})
    files.add("machine.json", {"ran": [outcome._asdict() for outcome in driver.outcomes]})
    text = summary.write(files, driver)
    files.end(text)
    say("\n" + text)
    if driver.no_device or files.unwritten:
        status = 1
    say(f"ended after {time.monotonic() - began:.1f} of {options.seconds:g} s, status {status}")
    return status


if __name__ == "__main__":
    sys.exit(main())
