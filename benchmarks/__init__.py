"""Speed, memory and scale, measured beside other libraries: `make bench` (`python -m benchmarks`).

What is compared stands in `rows.py`; `runner.py` measures, `page.py` writes. Our sides are in `ours.py`, `growth.py`
and `sharing.py`; the other libraries' in `peers/`, for anyone to improve. `gpu.py` is a command of its own.
"""
