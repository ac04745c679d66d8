"""Build script: `kernels/` is installed as the package `fastmlp.kernels`."""

import re
import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent

REPOSITORY = "https://github.com/fastmlp/fastmlp"
"""Where the project lives: the one place that says so."""

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


def readme():
    """The README for a package index, where a link into the repository needs an address."""
    text = (ROOT / "README.md").read_text("utf-8")
    pages, files = REPOSITORY + "/blob/main/", REPOSITORY + "/raw/main/"
    relative = r"\]\((?!https?://|#)"
    text = re.sub(r"(!\[[^\]]*)" + relative, rf"\1]({files}", text)
    return re.sub(relative, f"]({pages}", text)


class CleanBuild(build):
    """Build from what is there: modules that were deleted since the last build stay away."""

    def run(self):
        shutil.rmtree(Path(self.build_lib) / "fastmlp", ignore_errors=True)
        super().run()


setup(
    version=version,
    long_description=readme(),
    long_description_content_type="text/markdown",
    project_urls={
        "Homepage": REPOSITORY,
        "Repository": REPOSITORY,
        "Issues": REPOSITORY + "/issues",
        "Changelog": REPOSITORY + "/blob/main/CHANGELOG.md",
    },
    cmdclass={"build": CleanBuild},
    packages=[
        "fastmlp",
        *find_packages(str(ROOT), include=["fastmlp.*"]),
        *("fastmlp." + name for name in find_packages(str(ROOT), include=["kernels", "kernels.*"])),
    ],
    package_dir={"fastmlp": "fastmlp", "fastmlp.kernels": "kernels"},
    package_data={"fastmlp": ["py.typed", "hooks/*.py"]},
)
