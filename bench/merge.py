"""Make one results file of several that were measured one after the other, on one machine.

    python bench/merge.py PIECE.json … --json FILE.json

Pieces come from `run.py`, or from `bench_fit.py`: single suites and cases, where everything in one
go takes too long. Of a case that two pieces have, the first one's records count.
"""

import argparse
import json
from pathlib import Path

import common

VARYING = ("date", "load", "bandwidth_gb_per_s", "arithmetic_gflop_per_s")
"""What may differ from piece to piece; everything else must not."""


def key_of(record):
    """What is measured once: the cases of `bench_fit.py` have a name alone."""
    return tuple(record.get(field) for field in ("op", "case", "mode"))


def merged(pieces):
    """One report of several.

    Its metadata are the first one's, ``"pieces"`` what is each one's own; a floor is by the
    bandwidth of its piece.

    Raises:
        ValueError: The pieces are of different machines, versions, commits or benches.
    """
    fixed = [
        {name: value for name, value in piece["metadata"].items() if name not in VARYING}
        for piece in pieces
    ]
    for other in fixed[1:]:
        for name in fixed[0] | other:
            if fixed[0].get(name) != other.get(name):
                raise ValueError(
                    f"the pieces differ in {name}: {fixed[0].get(name)!r} and {other.get(name)!r}"
                )
    if len({"mode" in record for piece in pieces for record in piece["results"]}) > 1:
        raise ValueError("the pieces are of both run.py and bench_fit.py")
    metadata = [piece["metadata"] for piece in pieces]
    own = [{name: about[name] for name in VARYING if name in about} for about in metadata]
    report = {"metadata": {**metadata[0], "pieces": own}, "results": []}
    for piece in pieces:
        known = {key_of(record) for record in report["results"]}
        report["results"] += [r for r in piece["results"] if key_of(r) not in known]
        if "steps_per_second" in piece:
            report.setdefault("steps_per_second", piece["steps_per_second"])
    return report


def main(argv=None):
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pieces", type=Path, nargs="+", metavar="PIECE")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="written there")
    options = parser.parse_args(argv)
    pieces = [json.loads(piece.read_text("utf-8")) for piece in options.pieces]
    common.write_report(options.json, merged(pieces))


if __name__ == "__main__":
    main()
