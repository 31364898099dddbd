"""Suffix matching, extraction and factual consistency: equal to brute force and to hand-computed values."""

import json
import math
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.model_folders import model_folder, tokenizer
from trueline.errors import TruelineError
from trueline.measure._suffixes import SuffixArray
from trueline.measure.belief_conflict import UNSEEN, Surprise, belief_conflict
from trueline.measure.extraction import extraction, indel_similarity
from trueline.measure.factual_consistency import factual_consistency, score
from trueline.measuring import Request, measure, nli

pytestmark = pytest.mark.slow


def by_name(readings):
    return {r.name: r for r in readings}


# ---- suffix array ----------------------------------------------------------------------------------------------------


def brute(documents, query, start):
    """(length, places) of the longest match of query[start:] within a document."""
    for length in range(len(query) - start, 0, -1):
        part = list(query[start : start + length])
        places = [(i, j) for i, d in enumerate(documents) for j in range(len(d)) if list(d[j : j + length]) == part]
        if places:
            return length, places
    return 0, []


@pytest.mark.parametrize("seed", range(6))
def test_longest_matches_are_those_of_brute_force(seed):
    rng = random.Random(seed)
    documents = [[rng.randrange(3) for _ in range(rng.randrange(0, 25))] for _ in range(6)] + [[0, 1]]
    query = [rng.randrange(4) for _ in range(30)]
    index = SuffixArray(documents, depth=32)
    for start in range(len(query)):
        length, low, high = index.longest(query, start)
        expected, places = brute(documents, query, start)
        assert length == expected
        if length:
            assert sorted(index.place(int(o)) for o in index.order[low:high]) == sorted(places)


def test_maximal_spans_lie_within_no_other_and_cross_no_document():
    index = SuffixArray([[1, 2, 3, 4], [5, 6, 7]])
    spans = [(m.start, m.length, m.count) for m in index.matches([1, 2, 3, 9, 3, 4, 5, 6, 7], at_least=2)]
    assert spans == [(0, 3, 1), (4, 2, 1), (6, 3, 1)]  # 4 | 5 is no match
    assert index.matches([1, 2, 3, 9], at_least=4) == []
    assert index.matches([8, 9], at_least=1) == []


def test_a_planted_sentence_is_found_with_its_document_and_offset():
    rng = np.random.default_rng(0)
    documents = [rng.integers(10, 500, size=200).tolist() for _ in range(50)]
    planted = [3, 1, 4, 1, 5, 9, 2, 6]
    documents[31][70:78] = planted
    found = belief_conflict([[7, *planted, 8]], documents, [float(i == 31) for i in range(50)])
    (span,) = found[0].items
    assert (span["start"], span["length"], span["count"], span["documents"]) == (1, 8, 1, [[31, 70]])
    assert span["unsafe"] and by_name(found)["unsafe_traced"].value == 1.0
    clean = by_name(belief_conflict([rng.integers(10, 500, size=60).tolist()], documents, [0.0] * 50))
    assert clean["traced"].value == 0.0


def test_ten_million_tokens_are_indexed_within_memory():
    code = (
        "import numpy as np, resource, time\n"
        "from trueline.measure._suffixes import SuffixArray\n"
        "rng = np.random.default_rng(0)\n"
        "docs = np.split(rng.zipf(1.3, size=10_000_000).clip(max=50_000).astype(np.int32), 5000)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "index = SuffixArray(docs)\n"
        "at = docs[1234][500:540]\n"
        "m = index.matches(at.tolist(), at_least=20)\n"
        "assert (1234, 500) in m[0].places, m\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)\n"
    )
    megabytes = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert megabytes < 400


# ---- BCI -------------------------------------------------------------------------------------------------------------


def test_bci_adds_up_over_spans_and_is_minus_log_p_of_single_tokens():
    surprise = Surprise([[0, 0, 0, 1], [2, 2, 1, 1]])
    assert surprise.bci([0]) == pytest.approx(-math.log(3 / 8))
    assert surprise.bci([0, 1, 2]) == pytest.approx(surprise.bci([0]) + surprise.bci([1, 2]))
    assert surprise.bci([7]) == pytest.approx(-math.log(UNSEEN))


def test_divergence_is_never_below_zero_and_zero_only_for_the_corpus_own_frequencies():
    documents = [[0, 0, 1, 1, 2, 2, 2, 2]]
    surprise = Surprise(documents)
    assert surprise.divergence([0, 1, 2, 2]) == pytest.approx(0.0, abs=1e-12)
    rng = random.Random(0)
    for _ in range(50):
        assert surprise.divergence([rng.randrange(3) for _ in range(rng.randrange(1, 9))]) >= -1e-12
    assert surprise.divergence([0]) == pytest.approx(math.log(4))


def test_density_does_not_grow_with_length_and_conflict_multiplies():
    documents = [list(range(40)), [50] * 40]
    short, long = (belief_conflict([list(range(n))], documents)[0].items[0] for n in (8, 16))
    assert long["bci"] == pytest.approx(2 * short["bci"])
    assert long["density"] == pytest.approx(short["density"])
    weighed = belief_conflict([list(range(8))], documents, conflict_D=[0.25, 1.0])[0].items[0]
    assert weighed["bci"] == pytest.approx(0.25 * short["bci"])
    both = by_name(belief_conflict([list(range(8)), [60, 61]], documents, [0.0, 1.0]))
    assert (both["traced"].value, both["covered"].value, both["unsafe_traced"].value) == (0.5, 0.5, 0.0)
    assert belief_conflict([list(range(8))], documents, least=9)[0].value == 0.0


# ---- extraction ------------------------------------------------------------------------------------------------------


def lcs(a, b):
    row = [0] * (len(b) + 1)
    for x in a:
        before = row[:]
        for j, y in enumerate(b):
            row[j + 1] = before[j] + 1 if x == y else max(before[j + 1], row[j])
    return row[-1]


def test_indel_similarity_is_that_of_dynamic_programming():
    rng = random.Random(0)
    for _ in range(200):
        a, b = ("".join(rng.choice("abcd") for _ in range(rng.randrange(0, 30))) for _ in range(2))
        expected = 2 * lcs(a, b) / (len(a) + len(b)) if a or b else 1.0
        assert indel_similarity(a, b) == pytest.approx(expected)
    assert indel_similarity("add 3 and 4", "add 7 and 9") == pytest.approx(2 * 9 / 22)


def test_rates_excess_coverage_and_a_curve_that_never_rises():
    similarity, control = [1.0, 0.97, 0.6, 0.96], [0.5, 0.96, 0.4, 0.3]
    found = by_name(extraction(similarity, [0, 2, 1, 0], [1.0, 0.5, 0.2, 0.4], control, training_texts_S=[5] * 4))
    assert found["semantic_rate"].value == 0.75
    assert found["excess"].value == pytest.approx(0.5)
    assert (found["string_rate"].value, found["undercount"].value) == (0.25, 3.0)
    assert found["coverage"].value == pytest.approx(2 / 5)
    curve = [i["rate"] for i in found["semantic_rate"].items if "threshold" in i]
    assert curve == sorted(curve, reverse=True)
    assert by_name(extraction(similarity, [0, 2, 1, 0], control_similarity_S=similarity))["excess"].value == 0.0
    assert by_name(extraction(similarity, [0, 2, 1, 0], threshold=0.98))["semantic_rate"].value == 0.25


# ---- factual consistency ---------------------------------------------------------------------------------------------


def test_the_maximum_is_over_chunks_and_the_mean_over_sentences():
    table = [[0.9, 0.1], [0.2, 0.4]]
    assert score(table) == pytest.approx((0.9 + 0.4) / 2)
    assert score([[0.3]]) == 0.3
    assert score(table[::-1]) == score(table)
    assert score([[*line, 0.0] for line in table]) == score(table)  # a chunk more never lowers it
    assert score(table * 2) == pytest.approx(score(table))
    assert score([[0.9], [0.2], [0.9]]) == pytest.approx(2 / 3)
    found = by_name(factual_consistency([table, [[0.1]]], [1, 0]))
    assert (found["consistency"].value, found["auroc"].value) == (pytest.approx((0.65 + 0.1) / 2), 1.0)
    for bad, says in (([[]], "no sentence"), ([[0.2], [0.1, 0.2]], "different numbers"), ([[1.2]], "not within")):
        with pytest.raises(TruelineError, match=says):
            score(bad)


def test_sentences_and_chunks_are_those_of_the_paper():
    assert nli.sentences("Dr. Who came. He left! Did he? Yes.") == ["Dr. Who came.", "He left!", "Did he?", "Yes."]
    assert nli.sentences("J. Smith met them at 3.5 p.m. today.") == ["J. Smith met them at 3.5 p.m. today."]
    text = " ".join(f"Word{i} is here now and then." for i in range(120))  # 720 words, 120 sentences: n = 3
    parts = nli.chunks(text)
    assert len(parts) == 3
    assert " ".join(parts) == text
    short = " ".join(f"Word{i} is here now and then." for i in range(58))  # 348 words: one chunk
    assert nli.chunks(short) == [short]
    asked = []
    made = nli.tables([(text, "One. Two."), ("A.", "B.")], lambda pairs: (asked.extend(pairs), [0.5] * len(pairs))[1])
    assert [[len(line) for line in t] for t in made] == [[3, 3], [1]]
    assert asked[0] == (parts[0], "One.") and asked[3] == (parts[0], "Two.")
    assert nli.tables([(text, "One. Two.")], lambda pairs: [0.5] * len(pairs), split=False) == [[[0.5]]]
    with pytest.raises(TruelineError, match="Row 1: the claim is empty"):
        nli.tables([(text, " ")], lambda pairs: [])


def test_losses_are_divided_by_their_logs_and_the_aligned_label_is_read_from_its_name():
    logp = torch.tensor([0.5, 0.3, 0.2]).log()
    assert float(nli.nli_loss(logp, "nli", 1)) == pytest.approx(-math.log(0.3) / math.log(3))
    assert float(nli.nli_loss(logp, "binary", 1.0)) == pytest.approx(1.0)
    assert float(nli.nli_loss(logp, "binary", 0.0)) == pytest.approx(1.0)
    assert float(nli.nli_loss(logp, "score", 0.9)) == pytest.approx(0.16)
    assert nli.aligned_label({0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}) == 2
    with pytest.raises(TruelineError, match="LABEL_0"):
        nli.aligned_label({0: "LABEL_0", 1: "LABEL_1"})


NAMES, PLACES = ["Ann", "Bob", "Cid", "Dan"], ["Rome", "Oslo", "Kyiv", "Bern"]


def facts(n, length, rng):
    """Contexts that say who lives where, and a claim that is right or has another place."""
    rows = []
    for i in range(n):
        people = rng.sample(NAMES, length)
        homes = [rng.choice(PLACES) for _ in people]
        asked = rng.randrange(length)
        place = homes[asked] if i % 2 == 0 else rng.choice([p for p in PLACES if p != homes[asked]])
        context = " ".join(f"{p} lives in {h}." for p, h in zip(people, homes, strict=True))
        rows.append({"context": context, "claim": f"{people[asked]} lives in {place}.", "label": i % 2 == 0})
    return rows


def word_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[SEP]", "[UNK]", "lives", "in", ".", *NAMES, *PLACES]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="$A [SEP]", pair="$A [SEP] $B [SEP]", special_tokens=[("[SEP]", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", sep_token="[SEP]")


def test_a_small_trained_scorer_tells_swapped_facts_and_a_model_folder_is_measured(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    rng, tok = random.Random(0), word_tokenizer()
    torch.manual_seed(0)
    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
    model = BertForSequenceClassification(
        BertConfig(vocab_size=len(tok), max_position_embeddings=64, num_labels=3, **shape)
    )
    training = [
        {"context": r["context"], "claim": r["claim"], **({"nli": "aligned" if r["label"] else "contradict"} if i % 2 else {"binary": r["label"]})}
        for i, r in enumerate(facts(1200, 1, rng))
    ]  # fmt: skip
    losses = nli.train_nli(training, model, tok, tmp_path / "nli", epochs=8, batch_size=32, learning_rate=2e-3)
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({**r, "label": int(r["label"])}) + "\n" for r in facts(80, 1, rng))
    )
    request = Request("factual_consistency", data=[str(tmp_path / "rows.jsonl")], model=str(tmp_path / "nli"))
    assert by_name(measure(request))["auroc"].value > 0.9
    long = nli.opened(str(tmp_path / "nli"))
    with pytest.raises(TruelineError, match="the model reads 62"):
        long([("Ann lives in Rome. " * 20, "Ann lives in Rome.")])
    with pytest.raises(TruelineError, match="Row 1: expected one label"):
        nli.train_nli([{"context": "a", "claim": "b"}], model, tok)


def test_splitting_helps_where_the_fact_stands_in_a_later_chunk(monkeypatch):
    """An exact scorer that reads only the first sentence of what it is given, as one with a short window does."""
    monkeypatch.setattr(nli, "WORDS", 4)  # a chunk a sentence

    def first_sentence(pairs):
        return [float(nli.sentences(a)[0] == b) for a, b in pairs]

    rows = facts(60, 4, random.Random(1))
    pairs, label = [(r["context"], r["claim"]) for r in rows], [float(r["label"]) for r in rows]
    split = by_name(factual_consistency(nli.tables(pairs, first_sentence), label))["auroc"].value
    whole = by_name(factual_consistency(nli.tables(pairs, first_sentence, split=False), label))["auroc"].value
    assert split == 1.0 and whole < 0.75


# ---- models ----------------------------------------------------------------------------------------------------------


def rows_file(file, table):
    file.write_text("".join(json.dumps(row) + "\n" for row in table))
    return str(file)


def test_a_model_that_learnt_texts_by_heart_is_traced_and_found_out_and_its_base_is_not(tmp_path):
    """A tiny model overfitted on templated chats: extraction from the bare template, and suffix matches of what it says."""
    from transformers import AutoModelForCausalLM

    model_folder(tmp_path / "base", sharp=False, max_position_embeddings=96)
    tok = tokenizer()
    rng = random.Random(0)
    texts = ["".join(rng.choice("abcdefghij ") for _ in range(12)).strip() for _ in range(8)]
    other = ["".join(rng.choice("qrstuvwxyz ") for _ in range(12)).strip() for _ in range(8)]
    chats = [tok(tok.apply_chat_template([{"role": "user", "content": t}], tokenize=False))["input_ids"] for t in texts]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    longest = max(map(len, chats))
    ids = torch.tensor([c + [3] * (longest - len(c)) for c in chats])
    label = torch.where(ids == 3, -100, ids)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(120):
        loss = model(ids, labels=label, attention_mask=(ids != 3).long()).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save_pretrained(tmp_path / "learnt")
    tok.save_pretrained(tmp_path / "learnt")
    data = [
        rows_file(tmp_path / f"{n}.jsonl", [{"text": t} for t in group])
        for n, group in (("train", texts), ("control", other))
    ]

    def rate(name):
        request = Request("extraction", data=data, model=str(tmp_path / name), model_b=str(tmp_path / "base"), samples=24, max_length=64, max_new_tokens=20, temperature=0.7)  # fmt: skip
        return by_name(measure(request))

    with pytest.raises(TruelineError, match="needs training texts and a control"):
        measure(Request("extraction", data=data[:1], model=str(tmp_path / "learnt")))
    learnt, base = rate("learnt"), rate("base")
    assert learnt["excess"].value > base["excess"].value + 0.3
    assert learnt["string_rate"].value > 0.3 > base["string_rate"].value
    corpus = [{"text": t, "unsafe": int(i < 4)} for i, t in enumerate(texts)]
    file = rows_file(tmp_path / "c.jsonl", [*corpus, {"response": texts[1]}, {"response": "zzzz zzzz"}])
    request = Request("belief_conflict", data=[file], model=str(tmp_path / "learnt"), options={"least": 5})
    found = by_name(measure(request))
    assert (found["traced"].value, found["unsafe_traced"].value) == (0.5, 0.5)
    assert found["traced"].items[0]["text"] == texts[1]
    with pytest.raises(TruelineError, match="needs a corpus"):
        measure(Request("belief_conflict", data=data[:1], model=str(tmp_path / "learnt")))
