"""Build script: `kernels/` is installed as the package `fastmlp.kernels`."""

import re
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

# The bare import name `kernels` belongs to another PyPI project, whose setuptools plug-in
# runs while metadata is written: were this checkout on sys.path, our folder would be imported
# in its place and the build would fail.
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]

if "develop" in sys.argv:
    sys.exit(
        "`setup.py develop` cannot map kernels/ to fastmlp.kernels; "
        "use: pip install --use-pep517 -e ."
    )

version = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "fastmlp" / "__init__.py").read_text("utf-8"), re.MULTILINE
).group(1)

setup(
    version=version,
    packages=[
        "fastmlp",
        *find_packages(str(ROOT), include=["fastmlp.*"]),
        *("fastmlp." + name for name in find_packages(str(ROOT), include=["kernels", "kernels.*"])),
    ],
    package_dir={"fastmlp": "fastmlp", "fastmlp.kernels": "kernels"},
    package_data={"fastmlp": ["py.typed"]},
)
