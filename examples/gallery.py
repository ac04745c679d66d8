"""Run every example, with settings that take under eight minutes together on two CPU cores.

Each runs in a process of its own. Its pictures, with 64 colours to keep them small, go to
FOLDER/<example>-<picture>.png. With --pages PAGES what an example printed is kept as
PAGES/output/<example>.txt, and put into the pages: a block of code behind the comment
`<!-- example: words -->` is the paragraph of that output that begins with these words. `make
examples` writes to docs/figures and docs/experiments, two at a time: what they print of time is
then no measurement. An example that fails ends the script.
"""

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from PIL import Image
from tqdm import tqdm

EXAMPLES = Path(__file__).resolve().parent
SETTINGS = {
    "x2_sum_fit": ["--plain-steps", "100", "--quiet"],  # the longest, most of it on one core
    "x2_sum": ["--steps", "12000", "--reference-seconds", "2"],
    "x2_sum_lm": ["--restarts", "0"],
    "x2_dropout": ["--steps", "300"],
    "x2_lightning": ["--quiet"],
    "exhaustion": ["--gif", "exp(-x)"],
    "exhaustion_questions": [],
    "sinenet": ["--quiet"],
    "sinenet_lm": [],
    "xor_parity": [],
    "ill_conditioned": [],
    "million_curves": ["--n", "20000", "--quiet"],
    "deep_sets": ["--quiet"],
    "learned_activation": ["--quiet"],
    "neural_additive": ["--quiet"],
}
"""Arguments of each example, other than its folder."""

WITHOUT_PICTURES = ("x2_sum_fit", "x2_sum_lm")
NEEDS = {
    "learned_activation": "sklearn",
    "neural_additive": "sklearn",
    "x2_lightning": "lightning",  # without it the example runs a loop, and says so
}
WIDTHS = (1100, 900, 700)
LARGEST_FILE = 100_000
COLOURS = 64


def shrink(picture, target):
    """Save a PNG with few colours, in the first of WIDTHS, in pixels, that makes it small."""
    with Image.open(picture) as image:
        image = image.convert("RGB")
        for width in WIDTHS:
            if width < image.width:
                height = round(image.height * width / image.width)
                smaller = image.resize((width, height), Image.Resampling.LANCZOS)
            else:
                smaller = image
            # this method keeps the colours of thin lines, which others merge into grey
            few = smaller.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            few.save(target, optimize=True)
            if target.stat().st_size < LARGEST_FILE:
                return


BLOCK = re.compile(r"(<!-- (\w+): (.+?) -->\n+```text\n).*?^```$", re.DOTALL | re.MULTILINE)
"""A block of a page that is some example's output."""


def filled(page, outputs):
    """A page whose blocks are what examples printed.

    Args:
        page: Its text.
        outputs: What each example printed, by name; blocks of others stay as they are.
    """

    def block(found):
        before, name, words = found.groups()
        if name not in outputs:
            return found.group(0)
        paragraphs = outputs[name].split("\n\n")
        chosen = [p.strip("\n") for p in paragraphs if p.strip().startswith(words)]
        if len(chosen) != 1:
            raise ValueError(f"{len(chosen)} paragraphs of {name} begin with {words!r}")
        return f"{before}{chosen[0]}\n```"

    return BLOCK.sub(block, page)


def recorded(pages):
    """What the examples printed when they were last run, by name."""
    files = sorted((pages / "output").glob("*.txt"))
    return {file.stem: file.read_text("utf-8") for file in files}


def fill(pages):
    """Put what was printed into all pages of a folder."""
    for file in sorted(pages.glob("*.md")):
        file.write_text(filled(file.read_text("utf-8"), recorded(pages)), "utf-8")


def run(name, folder, pages=None):
    """Run one example; print its output, keep it and its pictures. Seconds it took."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, str(EXAMPLES / f"{name}.py"), *SETTINGS[name]]
        if name not in WITHOUT_PICTURES:
            command += ["--out", out]
        began = time.perf_counter()
        result = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", check=False, cwd=out
        )
        seconds = time.perf_counter() - began
        if result.returncode != 0:
            sys.exit(f"{name} failed:\n{result.stdout}\n{result.stderr}")
        arguments = " ".join(["python", f"examples/{name}.py", *SETTINGS[name]])
        # where it ran is no result
        lines = [line.rstrip() for line in result.stdout.splitlines() if out not in line]
        text = "\n".join([f"$ {arguments}", "", *lines]).rstrip() + "\n"
        tqdm.write(f"\n{text}", file=sys.stdout)
        if pages is not None:
            (pages / "output").mkdir(exist_ok=True)
            (pages / "output" / f"{name}.txt").write_text(text, "utf-8")
        for picture in sorted(Path(out).glob("*.png")):
            shrink(picture, folder / f"{name}-{picture.name}")
        for film in sorted(Path(out).glob("*.gif")):
            shutil.copy(film, folder / f"{name}-{film.name}")
    return seconds


def main(argv=None):
    """Run those that are asked for; return the seconds of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="examples to run (default all)")
    parser.add_argument("--out", type=Path, default=Path("out/gallery"), help="folder")
    parser.add_argument("--pages", type=Path, help="folder of pages that show what is printed")
    parser.add_argument("--jobs", type=int, default=1, help="examples at a time (default 1)")
    options = parser.parse_args(argv)
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")
    unknown = set(options.names) - set(SETTINGS)
    if unknown:
        parser.error(f"no such example: {', '.join(sorted(unknown))}")
    options.out.mkdir(parents=True, exist_ok=True)
    names = []
    for name in options.names or SETTINGS:
        needed = NEEDS.get(name)
        if needed is not None and importlib.util.find_spec(needed) is None:
            print(f"{name}: left out, {needed} is not installed")
        else:
            names.append(name)
    began = time.perf_counter()
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = [pool.submit(run, name, options.out, options.pages) for name in names]
        try:
            for done in tqdm(as_completed(runs), total=len(runs), desc="examples"):
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    seconds = {name: one.result() for name, one in zip(names, runs, strict=True)}
    if options.pages is not None:
        fill(options.pages)
    for name, value in seconds.items():
        print(f"{name:<20}{value:>8.1f} s")
    print(f"{'all':<20}{time.perf_counter() - began:>8.1f} s")
    return seconds


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
