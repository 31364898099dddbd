"""`make bench` (`python -m benchmarks`): measure the rows, print the table, write results.json and the page's section.

python -m benchmarks                      # all rows, three rounds, two families at once: under 30 minutes on two idle cores
python -m benchmarks dpo_live scoring     # these rows; what else results.json holds stays
python -m benchmarks --smoke              # tiny sizes, to see that every row runs; writes nothing
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import page
from benchmarks.runner import Bench, chosen_rows, machine
from benchmarks.workload import FULL, SMOKE


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("rows", nargs="*", help="names of rows; all without any")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of each row (default 3)")
    parser.add_argument("--lanes", type=int, default=2, help="families measured at once, one core each (default 2)")
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes; the numbers mean nothing and nothing is written"
    )
    args = parser.parse_args(arguments)
    rows = chosen_rows(args.rows)
    start = time.perf_counter()
    bench = Bench(SMOKE if args.smoke else FULL, rounds=args.rounds, lanes=args.lanes, say=_say)
    try:
        entries = bench.run(rows)
    except RuntimeError as error:
        sys.exit(str(error))
    measured = machine()
    for entry in entries.values():
        entry["measured"] = f"{measured}; {args.lanes} at once" if args.lanes > 1 else measured
    print("SMOKE: tiny sizes, these numbers mean nothing.\n" if args.smoke else f"Measured on {measured}.\n")
    print(page.table(entries))
    _say(f"{time.perf_counter() - start:.0f} seconds")
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            page.section(entries, Path(folder))  # to see that it can be written
    else:
        page.write(entries)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
