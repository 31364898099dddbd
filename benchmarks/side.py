"""One side in a process of its own, so that its peak memory is its own: `python -m benchmarks.side NAME --folder F`.

Prints one JSON object: what the side returns and what its meter saw. The runner starts these.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

from benchmarks.rows import SIDES
from benchmarks.workload import SCALES, prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=["prepare", *SIDES])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--scale", choices=list(SCALES), default="full")
    parser.add_argument("--mode", choices=["time", "count", "profile"], default="time")
    args = parser.parse_args()
    sizes = SCALES[args.scale]
    if args.name == "prepare":
        prepare(args.folder, sizes)
        return

    import torch

    from benchmarks.meter import Meter, peak_gb

    torch.set_num_threads(1)
    side, meter = SIDES[args.name], Meter(args.mode)
    module, function = side.call.split(":")
    result = getattr(importlib.import_module(module), function)(args.folder, sizes, meter, **side.settings)
    result |= {"seconds": meter.seconds, "peak_gb": peak_gb(), "imports_gb": meter.imports_gb}
    if args.mode == "count":
        result["flops"] = meter.flops
    if args.mode == "profile":
        result["profile"] = meter.table
    print(json.dumps(result))


if __name__ == "__main__":
    main()
