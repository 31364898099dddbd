"""Groups on disk: the same groups, audits, fingerprints and runs as in memory, and rows that a file holds twice."""

from __future__ import annotations

import gzip
import json
import random
import weakref
from pathlib import Path

import pytest

from benchmarks import growth
from trueline import align, assemble, groupfile
from trueline.encode import overlap, split_by_prompt
from trueline.engine.journal import read as read_journal
from trueline.errors import TruelineError
from trueline.groupfile import Digests, GroupFile, Joined, chunks, like
from trueline.groups import Group, Response
from trueline.readers import read, read_on_disk, streams


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUELINE_CACHE", str(tmp_path / "cache"))


def _groups(count: int) -> list[Group]:
    draw = random.Random(0)
    made = []
    for i in range(count):
        responses = [
            Response(text=f"r{i}", ids=[i, 70_000], mask=[True, False], rank=0, rewards={"a": 0.5}),
            Response(text="", rank=1, messages=[{"role": "assistant", "content": "x"}]),
        ]
        prompt = f"p{i}" if draw.random() < 0.5 else [{"role": "user", "content": f"ä{i}"}]
        made.append(Group(prompt, responses[: 1 + i % 2], [1, 2, i], {"k": [i]}, f"f.jsonl:{i}", prompt_odds=0.5))
    return made


def test_groups_come_back_as_they_were_by_number_slice_and_in_order(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trueline.groupfile.CHUNK", 4)
    groups, kept = _groups(11), GroupFile()
    kept.extend(groups[:5])
    assert list(kept) == groups[:5]
    kept.extend(groups[5:])  # appending after reading
    assert len(kept) == 11 and list(kept) == groups
    assert kept[-1] == groups[-1] and kept[3:9:2] == groups[3:9:2] and kept[4] is not kept[4]
    with pytest.raises(IndexError):
        kept[11]
    more = kept + groups[:2]
    assert isinstance(more, Joined) and list(more) == groups + groups[:2]
    assert (
        more[12] == groups[1]
        and more[-13] == groups[0]
        and more[10:13] == [groups[10], *groups[:2]]
        and len(more) == 13
    )
    assert [len(part) for part in chunks(kept)] == [4, 4, 3] and list(chunks([])) == [[]]
    assert isinstance(like(kept), GroupFile) and like(groups) == []


def test_digests_find_what_was_set_last_through_every_merge():
    draw = random.Random(1)
    digests, expected = Digests(recent=8), {}
    keys = [draw.randbytes(15) + bytes([i % 3]) for i in range(120)]  # some end with a zero byte
    for number in range(500):
        key = draw.choice(keys)
        assert digests.get(key) == expected.get(key)
        digests.set(key, number)
        expected[key] = number
    assert all(digests.get(key) == expected.get(key) for key in keys)
    assert len(digests._runs) <= 6


def _write(file: Path, rows: list[dict[str, object]]) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    data = text.encode()
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
    return str(file)


ROWS: list[dict[str, object]] = [
    {"prompt": f"question {i % 40}", "chosen": f"good {i % 50}", "rejected": f"bad {i % 25}"} for i in range(230)
] + [
    {"prompt": "question 3", "chosen": "bad 3", "rejected": "good 3"},  # the opposite order of an earlier row
    {"prompt": "question 4", "chosen": " ", "rejected": "x"},
    {"prompt": "question 5", "chosen": None, "rejected": "x"},
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.ndjson"])
def test_a_file_read_a_row_at_a_time_gives_the_same_groups_and_audit(name: str, tmp_path: Path):
    paths = [_write(tmp_path / name, ROWS), _write(tmp_path / "b.jsonl", ROWS[:3])]
    assert streams(paths)
    (groups, audit), (kept, same) = read(paths), read_on_disk(paths)
    assert list(kept) == groups
    assert same.to_json() == audit.to_json()
    assert audit.dropped["duplicate row"] == 30 and audit.noted["same pair with the opposite order"] == 1


def test_only_whole_local_json_lines_are_read_a_row_at_a_time(tmp_path: Path):
    lines = _write(tmp_path / "a.jsonl", ROWS[:3])
    (tmp_path / "list.jsonl").write_text(json.dumps(ROWS[:3]))
    (tmp_path / "spread.jsonl").write_text(json.dumps(ROWS[0], indent=1))
    (tmp_path / "a.csv").write_text("prompt\nx\n")
    assert streams([lines]) and not streams([])
    others = [
        f"{lines}::0.5",
        f"{lines}::1",
        "hub/name",
        *(str(tmp_path / n) for n in ("list.jsonl", "spread.jsonl", "a.csv")),
    ]
    assert not any(streams([lines, path]) for path in others)
    with pytest.raises(TruelineError, match="not a file of JSON lines"):
        read_on_disk([others[-1]])


@pytest.mark.parametrize(
    "line, message", [(b'{"prompt": \n', "broken JSON"), (b"\xff\n", "not UTF-8"), (b"[1]\n", "expected a JSON object")]
)
def test_bad_lines_are_named_as_when_all_is_read(line: bytes, message: str, tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(json.dumps(ROWS[0]).encode() + b"\n\n" + line)
    for reader in (read, read_on_disk):
        with pytest.raises(TruelineError, match=f"a.jsonl:3.*{message}"):
            reader([str(file)])


def test_a_split_and_the_overlap_do_not_depend_on_where_the_groups_are(tmp_path: Path):
    path = _write(tmp_path / "a.jsonl", ROWS[:100])
    groups, kept = read([path])[0], read_on_disk([path])[0]
    (train, held), (train_on_disk, same) = (split_by_prompt(g, 0.3, 0) for g in (groups, kept))
    assert isinstance(train_on_disk, GroupFile) and list(train_on_disk) == train and same == held
    assert overlap(train_on_disk, held) == overlap(train, held) == 0
    assert overlap(kept, held) == len({g.prompt for g in held})


def test_a_run_on_groups_on_disk_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    growth.write_groups(tmp_path / "groups.jsonl", 40)
    growth.write_model(tmp_path / "model")
    monkeypatch.setattr("trueline.groupfile.CHUNK", 16)
    found = []
    for name, limit in (("memory", 2**40), ("disk", 0)):
        monkeypatch.setattr(assemble, "ON_DISK_BYTES", limit)
        kinds: list[type] = []
        built = assemble.SourceContext
        monkeypatch.setattr(
            assemble, "SourceContext", lambda g, *a, built=built, kinds=kinds: kinds.append(type(g)) or built(g, *a)
        )
        run = align(
            model=str(tmp_path / "model"),
            data=[str(tmp_path / "groups.jsonl")],
            objective="dpo",
            output=str(tmp_path / name),
            steps=3,
            batch_size=4,
            eval_fraction=0.2,
            eval_steps=3,
            offline=True,
        )
        monkeypatch.setattr(assemble, "SourceContext", built)
        ours = run.folder / "trueline"
        found.append(
            [
                read_journal(ours / "metrics.jsonl"),
                read_journal(ours / "evals.jsonl"),
                (ours / "data.json").read_text(),
                json.loads((ours / "summary.json").read_text())["fingerprints"],
                kinds,
            ]
        )
    assert found[0][:4] == found[1][:4]
    assert found[0][4] == [list] and found[1][4] == [GroupFile]


def test_a_run_never_holds_more_groups_of_the_disk_than_a_few_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    growth.write_groups(tmp_path / "groups.jsonl", 200)
    growth.write_model(tmp_path / "model")
    monkeypatch.setattr("trueline.groupfile.CHUNK", 8)
    monkeypatch.setattr(assemble, "ON_DISK_BYTES", 0)
    made, alive, most = groupfile._group, 0, 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def counted(data: bytes | memoryview) -> Group:
        nonlocal alive, most
        group = made(data)
        alive += 1
        most = max(most, alive)
        weakref.finalize(group, gone)
        return group

    monkeypatch.setattr(groupfile, "_group", counted)
    align(
        model=str(tmp_path / "model"),
        data=[str(tmp_path / "groups.jsonl")],
        objective="dpo",
        output=str(tmp_path / "run"),
        steps=2,
        batch_size=4,
        offline=True,
    )
    assert 4 <= most <= 3 * 8


def test_groups_that_are_filled_in_place_stay_in_memory():
    from trueline.options import resolve

    common = {"model": "m", "data": ["d"], "output": "o"}

    def stays(objective: str = "dpo", **options: object) -> bool:
        config = resolve({**common, "objective": objective, **options})
        objectives = [
            assemble.WeightedObjective(
                assemble.load_method("objectives", name), config.method_options.get(f"objectives.{name}", {})
            )
            for name in config.objective
        ]
        return assemble._may_stay_on_disk(config, objectives)

    assert stays() and stays("sft")
    assert not stays(reference_cache=True)
    assert not stays(feedback=["rule:tests.feedback_functions:length"])
    assert not stays(system_prompt="Be kind.")
    assert not stays(
        "pairwise_reward" if "pairwise_reward" in {m.stem for m in Path("trueline/objectives").glob("*.py")} else "cut"
    )
