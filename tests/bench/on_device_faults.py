"""Steps that go wrong, put among those of `bench/on_device.py` by its tests."""

import os
import signal
import subprocess
import time
from pathlib import Path

SAMPLE = Path(__file__).with_name("on_device_sample.py")


def hangs(report):
    child = subprocess.Popen(["sleep", "1000"])
    report.figure("host.json", name="before it hangs", child=child.pid)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)


def dies(report):
    report.figure("fit.json", name="before it dies")
    os.kill(os.getpid(), signal.SIGSEGV)


def fails(report):
    raise ValueError("planted")


def fills(report):
    """The first figure finds no room, see the driver of the tests; the second makes some."""
    report.figure("tuning.json", name="no room")
    report.figure("tuning.json", name="room again")
    report.figure("ops.json", what="never written")


def tests(report):
    """The sample's tests, side by side, as on a device."""
    from device import failing

    report.dry = False
    failing.run(report, [SAMPLE])


def jobs(report):
    """Jobs of one step, two of which end their process or do not end."""
    from device.jobs import each

    work = {
        "fine": lambda: report.figure("tuning.json", name="fine"),
        "dying": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "raising": lambda: 1 / 0,
        "hanging": lambda: time.sleep(1000),
        "last": lambda: report.figure("tuning.json", name="last"),
    }
    each(report, work, limit=1.0)
