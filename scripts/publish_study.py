"""Put a finished study into the documentation: `python -m scripts.publish_study FOLDER` after `trueline study NAME`.

The page becomes docs/study_NAME.md, its figures docs/study_NAME/, its numbers benchmarks/study_NAME.json and its runs, a
line each, benchmarks/study_NAME_rows.jsonl.xz. Nothing is written by hand, and a smoke test is refused.
`python -m scripts.publish_study --unpack NAME FOLDER` lays those runs out again: the study then goes on with what it lacks,
or writes its page anew.
"""

from __future__ import annotations

import json
import lzma
import re
import shutil
import sys
from pathlib import Path

from trueline.cachefolder import cache_folder
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
    pack(folder, _archive(name, root))
    return write_whole(root / "docs" / f"study_{name}.md", text.rstrip() + "\n")


def _archive(name: str, root: Path) -> Path:
    return root / "benchmarks" / f"study_{name}_rows.jsonl.xz"


def pack(folder: Path, target: Path) -> None:
    """All rows of a study in one file, a line each. Where its files stood is left out: STUDY and CACHE stand for it."""
    places = {str(folder.resolve()): "STUDY", str(cache_folder().resolve()): "CACHE"}
    lines = []
    for file in sorted((folder / "rows").glob("*.json")):
        text = json.dumps({"file": file.name, "row": json.loads(file.read_text(encoding="utf-8"))})
        for place, name in places.items():
            text = text.replace(place, name)
        if found := re.search(r'"(/[^"]+)"', text):
            raise TruelineError(f"{file} names a place on this machine, {found[1]}. Publish from the folder it ran in.")
        lines.append(text + "\n")
    target.write_bytes(lzma.compress("".join(lines).encode(), preset=9))


def unpack(archive: Path, folder: Path) -> int:
    """Write a study's rows into a folder; returns how many there are. Rows that stand there already are kept."""
    lines = lzma.decompress(archive.read_bytes()).decode().splitlines()
    for line in map(json.loads, lines):
        target = folder / "rows" / line["file"]
        if not target.exists():
            write_whole(target, json.dumps(line["row"]) + "\n")
    return len(lines)


if __name__ == "__main__":
    try:
        match sys.argv[1:]:
            case ["--unpack", name, folder]:
                print(f"{unpack(_archive(name, ROOT), Path(folder))} rows")
            case [folder]:
                print(publish(Path(folder)))
            case _:
                sys.exit("usage: python -m scripts.publish_study FOLDER | --unpack NAME FOLDER")
    except TruelineError as error:
        sys.exit(str(error))
