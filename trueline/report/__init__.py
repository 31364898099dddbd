"""Run folders to one HTML page: what was gained, what it cost, and how far both can be trusted.

Everything here reads saved files only and never imports torch. `record.py` reads a folder, `outcome.py` compares runs,
`figures.py` draws, `samples.py` chooses texts, `build.py` puts the page together, `picture.py` draws the frontier alone.
"""
