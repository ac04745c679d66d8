"""Run every example, with settings that take under eight minutes together on two CPU cores.

Each runs in a process of its own. Its pictures, with 64 colours to keep them small, go to
FOLDER/<example>-<picture>.png; `make examples` writes to docs/figures, from where the documentation
takes them. An example that fails ends the script.
"""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from tqdm import tqdm

EXAMPLES = Path(__file__).resolve().parent
SETTINGS = {
    "x2_sum": ["--steps", "12000", "--reference-seconds", "2"],
    "x2_sum_fit": ["--epochs", "30", "--plain-steps", "100", "--quiet"],
    "x2_sum_lm": ["--restarts", "0"],
    "x2_dropout": ["--steps", "300"],
    "x2_lightning": ["--limit-batches", "100", "--quiet"],
    "exhaustion": [],
    "sinenet": ["--quiet"],
    "sinenet_lm": [],
    "xor_parity": [],
    "ill_conditioned": ["--draws", "10"],
    "million_curves": ["--n", "20000", "--quiet"],
    "deep_sets": ["--quiet"],
    "learned_activation": ["--quiet"],
    "neural_additive": ["--quiet"],
}
"""Arguments of each example, other than its folder."""

WITHOUT_PICTURES = ("x2_sum_fit", "x2_sum_lm")
NEEDS = {
    "x2_lightning": "lightning",
    "learned_activation": "sklearn",
    "neural_additive": "sklearn",
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


def run(name, folder):
    """Run one example; print its output, keep its pictures. Seconds it took."""
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
        tqdm.write(f"\n$ {arguments}\n{result.stdout.replace(out, str(folder))}", file=sys.stdout)
        for picture in sorted(Path(out).glob("*.png")):
            shrink(picture, folder / f"{name}-{picture.name}")
    return seconds


def main(argv=None):
    """Run those that are asked for; return the seconds of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="examples to run (default all)")
    parser.add_argument("--out", type=Path, default=Path("out/gallery"), help="folder")
    options = parser.parse_args(argv)
    unknown = set(options.names) - set(SETTINGS)
    if unknown:
        parser.error(f"no such example: {', '.join(sorted(unknown))}")
    options.out.mkdir(parents=True, exist_ok=True)
    seconds = {}
    bar = tqdm(options.names or SETTINGS)
    for name in bar:
        bar.set_description(name)
        needed = NEEDS.get(name)
        if needed is not None and importlib.util.find_spec(needed) is None:
            bar.write(f"{name}: left out, {needed} is not installed")
            continue
        seconds[name] = run(name, options.out)
    for name, value in seconds.items():
        print(f"{name:<20}{value:>8.1f} s")
    print(f"{'all':<20}{sum(seconds.values()):>8.1f} s")
    return seconds


if __name__ == "__main__":
    main()
