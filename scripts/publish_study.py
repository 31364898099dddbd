"""Put a finished study into the documentation: `python -m scripts.publish_study FOLDER` after `trueline study NAME`.

The page becomes docs/study_NAME.md, its figures docs/study_NAME/, its numbers benchmarks/study_NAME.json. Nothing is
written by hand, and a smoke test is refused.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from trueline.errors import TruelineError
from trueline.studies.conduct import SMOKE_TEST
from trueline.wholefile import write_whole

ROOT = Path(__file__).parents[1]
PAGES = ("methods", "online_offline", "ranking", "inference_aware")


def publish(folder: Path, root: Path = ROOT) -> Path:
    """Copy page, figures and numbers of the study in this folder; returns the page."""
    name = next((n for n in PAGES if (folder / f"{n}.md").is_file()), None)
    if name is None:
        raise TruelineError(
            f"'{folder}' holds no page of a study ({', '.join(PAGES)}). Run `trueline study NAME` first."
        )
    text = (folder / f"{name}.md").read_text(encoding="utf-8")
    if SMOKE_TEST.strip() in text:
        raise TruelineError(f"'{folder}' is a --quick run, whose numbers mean nothing. Publish a whole one.")
    figures = root / "docs" / f"study_{name}"
    shutil.rmtree(figures, ignore_errors=True)
    figures.mkdir(parents=True)
    for image in re.findall(r"\]\((\w+\.svg)\)", text):
        shutil.copyfile(folder / image, figures / image)
    text = re.sub(r"\]\((\w+\.svg)\)", rf"](study_{name}/\1)", text)
    numbers = root / "benchmarks" / f"study_{name}.json"
    numbers.parent.mkdir(exist_ok=True)
    shutil.copyfile(folder / f"{name}.json", numbers)
    return write_whole(root / "docs" / f"study_{name}.md", text.rstrip() + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m scripts.publish_study FOLDER")
    try:
        print(publish(Path(sys.argv[1])))
    except TruelineError as error:
        sys.exit(str(error))
