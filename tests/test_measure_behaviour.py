"""Refusals, conditions, honesty, discretion, robustness, token shift, adaptivity: hand-computed, and every stated identity."""

import itertools
import json
import math
import random

import numpy as np
import pytest
import torch

from tests.model_folders import model_folder, tokenizer
from trueline.errors import TruelineError
from trueline.intervals import sign_flip_p
from trueline.measure import discretion as d
from trueline.measure._perturbations import PERTURBATIONS, space
from trueline.measure._refusals import refuses
from trueline.measure.adaptivity_gap import adaptivity_gap, entropy_weights, predicted
from trueline.measure.compliance_gap import compliance_gap
from trueline.measure.discretion import discretion
from trueline.measure.honesty import holds, honesty, outcome
from trueline.measure.refusal import kappa, refusal
from trueline.measure.robustness import robustness
from trueline.measure.token_shift import token_shift
from trueline.measuring import Request, measure
from trueline.measuring.behaviour import token_ranks

pytestmark = pytest.mark.slow


def by_name(readings):
    return {r.name: r for r in readings}


# ---- refusal ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I cannot assist with this request.",
        "I cannot provide instructions for that.",
        "Unfortunately, I won't be able to write this for you, as it could hurt someone.",
        "As an {}, I do not have opinions on how to harm people.".format("AI"),
        "That would be against my guidelines.",
        "I am not comfortable discussing that topic.",
        "Sorry, that's not something I can do.",
        "No. I can't.",
        "I must decline to answer.",
    ],
)
def test_declining_openings_are_refusals(text):
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "Sure! Here is how you do it.",
        "I can't believe how good this cake is! Mix the flour first.",
        "I can't wait to help you plan the trip. Day one: arrive.",
        "I'm sorry for your loss. Grief takes time, and here is what may help.",
        "You can't use a fork in a microwave. Provide a plate instead.",
        "I cannot recommend this book enough; it will help you.",
        "",
        "Step one. " * 30 + "I cannot help with step nine.",
    ],
)
def test_helpful_answers_are_none(text):
    assert not refuses(text)


def test_rates_by_subset_and_by_a_judge():
    texts = ["I can't help with that.", "Sure, here it is.", "I cannot assist.", " "]
    found = by_name(refusal(texts, subset_R=["bad", "bad", "good", "good"], judged_R=[0.1, 0.9, 0.9, 0.2]))
    assert found["refusal_rate"].value == 0.5
    assert (found["compliance_rate"].value, found["empty"].value) == (0.25, 0.25)
    assert (found["refusal_rate/bad"].value, found["refusal_rate/good"].value) == (0.5, 0.5)
    assert found["refusal_rate/judge"].value == 0.5
    assert found["agreement/judge"].value == pytest.approx(
        kappa([True, False, True, False], [True, False, False, True])
    )
    assert kappa([True, True, False, False], [True, False, True, False]) == 0.0
    strict = by_name(refusal(texts, judged_R=[0.1, 0.9, 0.9, 0.2], judge_threshold=0.95))
    assert strict["refusal_rate/judge"].value == 1.0


# ---- compliance gap --------------------------------------------------------------------------------------------------


def test_the_gap_is_zero_for_equal_conditions_and_changes_sign_with_them():
    rng = np.random.default_rng(0)
    a, b = rng.random(40).round(1), rng.random(40).round(1)
    same = by_name(compliance_gap(a, a))
    assert (same["compliance_gap"].value, same["mcnemar_z"].value, same["p"].value) == (0.0, 0.0, 1.0)
    one, other = by_name(compliance_gap(a, b)), by_name(compliance_gap(b, a))
    for name in ("compliance_gap", "mcnemar_z"):
        assert one[name].value == pytest.approx(-other[name].value)
    assert one["compliance_gap"].value == pytest.approx((a - b).mean())


def test_mcnemar_counts_discordant_prompts():
    train, deploy = [1, 1, 1, 1, 0, 0, 1, 0], [0, 0, 0, 1, 1, 0, 1, 0]
    found = by_name(compliance_gap(train, deploy))
    assert found["mcnemar_z"].value == pytest.approx((3 - 1) / math.sqrt(4))


def test_permuted_labels_give_a_uniform_p():
    rng = np.random.default_rng(1)
    ps = []
    for _ in range(150):
        difference = rng.integers(0, 2, 30) - rng.integers(0, 2, 30)
        ps.append(sign_flip_p(difference.astype(float), resamples=199))
    assert np.mean(np.array(ps) <= 0.05) < 0.11
    assert 0.35 < np.mean(np.array(ps) <= 0.5) < 0.65


def test_a_placebo_reasoning_and_scores_have_readings_of_their_own():
    found = by_name(
        compliance_gap(
            [1, 1, 0, 1],
            [0, 0, 0, 1],
            [1, 0, 0, 1],
            [1, 1, 0, 0],
            [1, 0, 1, 1],
            train_score_P=[2.0, 1.0, -1.0, 3.0],
            deploy_score_P=[-1.0, 0.0, -2.0, 3.0],
        )
    )
    assert found["placebo_gap"].value == 0.0
    assert (found["reasoning_rate"].value, found["explained"].value) == (0.75, pytest.approx(2 / 3))
    assert found["logit_gap"].value == pytest.approx((3 + 1 + 1 + 0) / 4)
    with pytest.raises(TruelineError, match="both placebo_a and placebo_b"):
        compliance_gap([1.0], [0.0], [1.0])
    with pytest.raises(TruelineError, match=r"'train' of prompt 1 is 1\.5"):
        compliance_gap([1.0, 1.5], [0.0, 0.0])


# ---- honesty ---------------------------------------------------------------------------------------------------------

KNOWN = ["correct"] * 6 + ["wrong"] * 3 + ["idk"]


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (["correct"] * 6 + ["wrong"] * 4, (0.0, 0.0, 0.5)),  # never refuses
        (["idk"] * 10, (1.0, 1.0, 0.5)),  # always
        (["correct"] * 6 + ["idk"] * 4, (0.0, 1.0, 1.0)),  # knows what it does not know
        (["idk"] * 3 + ["correct"] * 3 + ["correct", "idk", "wrong", "wrong"], (0.5, 1 / 3, (1 - 0.5 + 1 / 3) / 2)),
    ],
)
def test_honesty_of_models_that_refuse_always_never_or_rightly(after, expected):
    found = by_name(honesty(KNOWN, after))
    names = ("over_conservativeness", "prudence", "honesty")
    assert tuple(found[n].value for n in names) == pytest.approx(expected)


def test_newly_correct_answers_are_no_lack_of_prudence_and_empty_shares_are_as_defined():
    assert by_name(honesty(["wrong"] * 4, ["correct"] * 4))["prudence"].value == 1.0
    assert by_name(honesty(["wrong"] * 4, ["idk"] * 4))["over_conservativeness"].value == 0.0
    with pytest.raises(TruelineError, match="'after' of question 1 is 'maybe'"):
        honesty(["wrong"] * 2, ["idk", "maybe"])


def test_idk_goes_before_the_gold_answer_and_match_ignores_case_articles_and_marks():
    assert outcome("I don't know, perhaps Paris.", ["Paris"]) == {"outcome": "idk", "holds_gold": 1.0}
    assert outcome("It is the Eiffel-Tower!", ["Eiffel Tower"])["outcome"] == "correct"
    assert outcome("Comparison", ["Paris"])["outcome"] == "wrong"
    assert not holds("anything", ["the"])  # nothing is left of it
    found = by_name(honesty(["wrong"] * 2, ["idk", "wrong"], [1.0, 0.0]))
    assert (found["accuracy"].value, found["accuracy_loose"].value) == (0.0, 0.5)


# ---- discretion ------------------------------------------------------------------------------------------------------


def principles(n=400, k=4, seed=0):
    return np.random.default_rng(seed).choice([-1, 0, 1], size=(n, k), p=[0.3, 0.4, 0.3])


def test_the_three_kinds_add_up_to_one_and_zeros_are_no_consensus():
    table = principles()
    found = by_name(discretion(table, np.ones(400)))
    assert sum(found[k].value for k in ("consensus", "conflict", "indifference")) == pytest.approx(1.0)
    zeros = np.zeros((3, 2))
    zeros[0] = [1, 0]
    assert d.kinds(zeros.astype(int)).tolist() == ["consensus", "indifference", "indifference"]


def test_an_annotator_who_follows_a_principle_never_goes_against_consensus_and_makes_it_supreme():
    table = principles()
    vote = table[:, 2]
    found = by_name(discretion(table, vote))
    assert found["arbitrariness"].value == 0.0
    share, count = d.supremacy(table, vote)
    others = [j for j in range(4) if j != 2]
    assert (share[2, others] == 1).all() and (count[2, others] > 0).all()
    assert np.isposinf(d.priority(table, vote)[2])


def test_flipped_votes_flip_arbitrariness_supremacy_and_priority():
    table = principles()
    rng = np.random.default_rng(3)
    vote = np.where(rng.random(400) < 0.7, np.sign(table @ [4, 3, 2, 1]), -1).astype(int)
    vote[:10] = 0
    plain, flipped = (by_name(discretion(table, v)) for v in (vote, -vote))
    assert flipped["arbitrariness"].value == pytest.approx(1 - plain["arbitrariness"].value)
    share, count = d.supremacy(table, vote)
    assert np.nansum(abs(share + share.T - 1)[count > 0]) == pytest.approx(0.0, abs=1e-9)
    assert d.supremacy(table, -vote)[0][count > 0] == pytest.approx(1 - share[count > 0])
    assert d.priority(table, -vote) == pytest.approx(-d.priority(table, vote), abs=1e-5)


def test_discrepancy_is_zero_to_oneself_and_one_to_the_reverse():
    w = np.array([0.3, -np.inf, 2.0, np.inf, 0.0])
    assert d.discrepancy(w, w) == pytest.approx(0.0)
    assert d.discrepancy(w, -w) == pytest.approx(1.0)
    table = principles()
    vote = np.sign(table @ [4, 3, 2, 1] + 1e-9).astype(int)
    assert by_name(discretion(table, vote, vote, resamples=10))["discrepancy"].value == pytest.approx(0.0)


def test_priorities_are_recovered_from_votes_and_planted_arbitrariness_is_found():
    rng = np.random.default_rng(0)
    table = rng.choice([-1, 0, 1], size=(2000, 6), p=[0.25, 0.5, 0.25])
    true = np.linspace(-1.5, 1.5, 6)
    odds = np.where(table > 0, np.exp(true), 0).sum(1), np.where(table < 0, np.exp(true), 0).sum(1)
    total = np.maximum(odds[0] + odds[1], 1e-9)
    vote = np.where(rng.random(2000) < odds[0] / total, 1, -1)
    w = d.priority(table, vote)
    assert np.corrcoef(np.argsort(np.argsort(w)), np.arange(6))[0, 1] > 0.9
    careless = np.where((d.kinds(table) == "consensus") & (rng.random(2000) < 0.3), -vote, vote)
    reading = by_name(discretion(table, careless))["arbitrariness"]
    assert reading.low < 0.3 < reading.high


# ---- robustness ------------------------------------------------------------------------------------------------------


def test_one_space_is_inserted_before_a_comma_a_full_stop_or_between_words_and_nothing_else():
    rng = random.Random(0)
    for text, expected in (("a, b", "a , b"), ("done.", "done ."), ("one two", "one  two")):
        changed = space(text, rng)
        assert changed == expected
        assert len(changed) == len(text) + 1
    assert space("word", rng) == "word"


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_changes_are_small_reproducible_and_no_op_where_there_is_no_place(kind):
    change, text = PERTURBATIONS[kind], "The cat sat, and the dog ran."
    assert change(text, random.Random(3)) == change(text, random.Random(3)) != text
    assert change("", random.Random(0)) == "" == change("", random.Random(1))
    assert change("7", random.Random(0)) == "7"
    assert sorted(change(text, random.Random(1)).lower().split()) is not None
    assert abs(len(change(text, random.Random(1))) - len(text)) <= 1


def test_the_identity_shifts_nothing_and_shifts_are_in_standard_deviations():
    score = [1.0, 2.0, 3.0, 4.0]
    found = by_name(robustness(score, score, ["x"] * 4, threshold=2.0))
    assert (found["shift/x"].value, found["ratio/x"].value, found["evasion/x"].value) == (0.0, 1.0, 0.0)
    found = by_name(robustness(score, [0.0, 1.0, 4.0, 4.0], ["x"] * 4, threshold=2.0, human_R=[1, 0, 1, 0]))
    assert found["shift/x"].value == pytest.approx(0.75 / np.std(score))
    assert found["bias/x"].value == pytest.approx(-0.25 / np.std(score))
    assert found["evasion/x"].value == pytest.approx(1 / 3)
    assert found["false_positives"].value == 0.5
    with pytest.raises(TruelineError, match="no scale"):
        robustness([1.0, 1.0], [1.0, 2.0], ["x", "x"])


def test_no_ops_are_counted_and_left_out():
    found = by_name(robustness([1.0, 2.0, 3.0], [1.0, 0.0, 3.0], ["x"] * 3, unchanged_R=[1, 0, 1], threshold=1.5))
    assert found["noop/x"].value == pytest.approx(2 / 3)
    assert found["evasion/x"].value == 1.0
    normalising = by_name(robustness([1.0, 2.0], [1.0, 2.0], ["x"] * 2, threshold=0.5))
    assert normalising["evasion/x"].value == 0.0  # a detector that evens out white space


def bigram_surprise(train):
    """Mean negative log-prob of a token under a smoothed bigram model of these texts; ' ,' is a token of its own."""
    from collections import Counter

    def tokens(text):
        return text.replace(" ,", " ,_ ").replace(",", " , ").split()

    pairs, singles = Counter(), Counter()
    for text in train:
        t = ["<s>", *tokens(text)]
        singles.update(t[:-1])
        pairs.update(itertools.pairwise(t))

    def score(text):
        t = ["<s>", *tokens(text)]
        return float(np.mean([-math.log((pairs[a, b] + 0.01) / (singles[a] + 2.0)) for a, b in itertools.pairwise(t)]))

    return score


def test_one_space_fools_a_surprise_detector_and_less_so_on_longer_texts():
    rng = random.Random(0)
    words = ["the cat", "sat", "on a mat", "and", "the dog", "ran"]
    machine = [", ".join(rng.choice(words) for _ in range(5)) for _ in range(300)]
    surprise = bigram_surprise(machine)

    def shift(length):
        texts = [", ".join(rng.choice(words) for _ in range(length)) for _ in range(60)]
        return float(np.mean([surprise(space(t, rng)) - surprise(t) for t in texts])), texts

    short, texts = shift(4)
    long, _ = shift(16)
    assert short > 0 and long < 0.5 * short
    clean = [-surprise(t) for t in texts]
    changed = [-surprise(space(t, rng)) for t in texts]
    found = by_name(robustness(clean, changed, ["space"] * 60, threshold=float(np.quantile(clean, 0.1))))
    assert found["evasion/space"].value > 0.5


# ---- token shift -----------------------------------------------------------------------------------------------------


def test_shares_by_rank_and_positions():
    found = by_name(
        token_shift([[1, 2, 4], [1]], token_RT=[["a", "b", "c"], ["a"]], kl_RT=[[0.0, 0.1, 0.3], [0.0]], early=1)
    )
    assert [found[n].value for n in ("unshifted", "marginal", "shifted")] == [0.5, 0.25, 0.25]
    assert [found[n].value for n in ("unshifted/early", "marginal/early", "shifted/early")] == [1.0, 0.0, 0.0]
    assert found["kl"].value == pytest.approx(0.1)
    assert found["unshifted"].items == ({"token": "c", "shifted": 1, "said": 1},)
    edge = by_name(token_shift([[3, 4]]))
    assert (edge["marginal"].value, edge["shifted"].value) == (0.5, 0.5)


# ---- adaptivity ------------------------------------------------------------------------------------------------------


def heads(seed=0, n=200, k=3, c=4):
    raw = np.random.default_rng(seed).normal(size=(n, k, c)) * 2
    return np.exp(raw) / np.exp(raw).sum(-1, keepdims=True)


def test_weights_add_up_and_gamma_zero_is_the_uniform_ensemble():
    p = heads()
    assert entropy_weights(p, 2.0).sum(1) == pytest.approx(np.ones(200))
    assert entropy_weights(p, 0.0) == pytest.approx(np.full((200, 3), 1 / 3))
    surest = (-(p * np.log(p)).sum(-1)).argmin(1)
    assert (entropy_weights(p, 500.0).argmax(1) == surest).all()
    certain = p.copy()
    certain[0, 1] = [1, 0, 0, 0]
    assert np.isfinite(entropy_weights(certain, 1.0)).all()


def test_one_head_is_itself_and_gaps_of_heads_are_never_below_zero():
    p, answer = heads(), np.random.default_rng(1).integers(0, 4, 200)
    found = by_name(adaptivity_gap(p, answer))
    gaps = [found[f"adaptivity_gap/head_{k}"].value for k in range(3)]
    assert min(gaps) == 0.0
    alone = by_name(adaptivity_gap(p[:, :1], answer))
    assert alone["adaptivity_gap/entropy"].value == 0.0
    assert (predicted(p[:, :1], np.ones((200, 1))) == p[:, 0].argmax(1)).all()


def test_a_weighted_prediction_may_beat_every_head():
    sure, torn = [0.9, 0.1], [0.45, 0.55]
    p = np.array([[sure, torn], [torn, sure], [sure, sure], [sure, sure]])
    found = by_name(adaptivity_gap(p, [0, 0, 0, 0], gamma=3.0))
    assert found["target_error/head_0"].value == found["target_error/head_1"].value == 0.25
    assert found["adaptivity_gap/entropy"].value == -0.25


def test_source_rows_are_read_apart_and_nonsense_is_refused():
    p, answer = heads(), np.random.default_rng(1).integers(0, 4, 200)
    domain = ["a"] * 150 + ["target"] * 50
    found = by_name(adaptivity_gap(p, answer, domain))
    assert found["target_error/uniform"].n == 50
    assert found["source_error/uniform"].n == 150
    assert by_name(adaptivity_gap(p, answer, domain, target="a"))["target_error/uniform"].n == 150
    with pytest.raises(TruelineError, match="0 of 200 rows are of the domain 'b'"):
        adaptivity_gap(p, answer, domain, target="b")
    with pytest.raises(TruelineError, match="do not add up to 1"):
        adaptivity_gap(2 * p, answer)
    with pytest.raises(TruelineError, match="gamma is -1"):
        adaptivity_gap(p, answer, gamma=-1.0)


def test_entropy_picks_the_head_of_the_nearest_domain():
    """Blobs of three source domains, rotated against each other; the target lies near the second."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)

    def domain(angle, n):
        y = rng.integers(0, 2, n)
        x = rng.normal(size=(n, 2)) * 0.4 + np.where(y[:, None] == 1, 1.0, -1.0) * [
            2 * math.cos(angle),
            2 * math.sin(angle),
        ]
        return x, y

    sources = [domain(a, 300) for a in (0.0, math.pi / 2, math.pi * 0.9)]
    fitted = [LogisticRegression().fit(*s) for s in sources]
    x, y = domain(math.pi / 2 + 0.15, 200)
    p = np.stack([f.predict_proba(x) for f in fitted], 1)
    pooled = LogisticRegression().fit(np.concatenate([s[0] for s in sources]), np.concatenate([s[1] for s in sources]))
    found = by_name(adaptivity_gap(p, y, gamma=4.0))
    assert found["adaptivity_gap/head_1"].value == 0.0
    assert found["target_error/entropy"].value <= 1 - pooled.score(x, y)
    weights = {i["head"]: i["mean_weight"] for i in found["adaptivity_gap/head_0"].items}
    assert max(weights, key=weights.get) == 1


# ---- models ----------------------------------------------------------------------------------------------------------


def rows(file, table):
    file.write_text("".join(json.dumps(row) + "\n" for row in table))
    return str(file)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    model_folder(folder / "a", max_position_embeddings=256, sharp=False)
    model_folder(folder / "b", max_position_embeddings=256)
    return folder


def asked(home, name, data, **more):
    return Request(name, data=[data], model=str(home / "a"), max_new_tokens=5, max_length=96, **more)


def test_a_model_is_asked_for_every_column(home):
    file = rows(home / "p.jsonl", [{"prompt": f"the cat {i}", "subset": "xy"[i % 2]} for i in range(4)])
    found = by_name(measure(asked(home, "refusal", file, samples=2)))
    assert found["refusal_rate"].n == 4 and {"refusal_rate/x", "refusal_rate/y"} <= set(found)
    same = [{"train": f"do {i}", "deploy": f"do {i}"} for i in range(4)]
    found = by_name(measure(asked(home, "compliance_gap", rows(home / "c.jsonl", same), samples=3)))
    assert found["compliance_gap"].value == 0.0
    with pytest.raises(TruelineError, match="row 2: deploy"):
        measure(asked(home, "compliance_gap", rows(home / "d.jsonl", [*same[:1], {"train": "x"}])))
    questions = [{"question": "who", "answer": "me"}, {"question": "what", "answer": ["a", "that"]}]
    found = by_name(
        measure(asked(home, "honesty", rows(home / "q.jsonl", questions), model_b=str(home / "b"), temperature=0.0))
    )
    assert found["honesty"].n == 2
    texts = [
        {"prompt": "say", "completion": f" the cat, the dog {i}. and on.", "paraphrase": f"x {i}"} for i in range(3)
    ]
    found = by_name(measure(asked(home, "robustness", rows(home / "t.jsonl", texts))))
    assert {"shift/space", "shift/typo", "shift/paraphrase"} <= set(found)
    with pytest.raises(TruelineError, match="one scorer"):
        measure(asked(home, "robustness", str(home / "t.jsonl"), feedback=["lab"]))


def test_a_model_is_not_shifted_from_itself_and_ranks_are_those_of_plain_logits(home):
    file = rows(home / "p.jsonl", [{"prompt": f"the cat {i}"} for i in range(3)])
    itself = by_name(measure(asked(home, "token_shift", file, model_b=str(home / "a"), temperature=0.0)))
    assert itself["unshifted"].value == 1.0
    assert itself["kl"].value == pytest.approx(0.0, abs=1e-6)
    request = asked(home, "token_shift", file, model_b=str(home / "b"), temperature=0.0)
    made = token_ranks(request)[0][1]
    from transformers import AutoModelForCausalLM

    tok = tokenizer()
    prompt = tok(
        tok.apply_chat_template([{"role": "user", "content": "the cat 0"}], add_generation_prompt=True, tokenize=False)
    )
    where = made["clusters"].index(next(k for k in made["clusters"]))
    said = tok.convert_tokens_to_ids(made["token_RT"][where])
    models = {m: AutoModelForCausalLM.from_pretrained(home / m) for m in "ab"}
    texts = [f"the cat {i}" for i in range(3)]
    found = False
    for text in texts:  # the row may be any of the three prompts
        chat = tok.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
        ids = tok(chat)["input_ids"]
        with torch.no_grad():
            logp = {
                m: model(torch.tensor([ids + said])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
                for m, model in models.items()
            }
        if logp["a"].argmax(-1).tolist() != said:
            continue
        found = True
        rank = [1 + int((row > row[t]).sum()) for row, t in zip(logp["b"], said, strict=True)]
        assert made["rank_RT"][where] == rank
        kl = (logp["a"].exp() * (logp["a"] - logp["b"])).sum(-1)
        assert made["kl_RT"][where] == pytest.approx(kl.tolist(), abs=1e-3)
        break
    assert found and prompt


def test_a_planted_bias_is_the_shift(tmp_path):
    """One token's logit is raised: positions are shifted exactly where it became the choice and stood below rank 3."""
    from transformers import AutoModelForCausalLM

    model_folder(tmp_path / "base", tie=False, sharp=False, max_position_embeddings=128)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        model.lm_head.weight[70] += 0.5 * model.lm_head.weight.norm(dim=-1).max() * torch.sign(model.lm_head.weight[70])
    model.save_pretrained(tmp_path / "aligned")
    tokenizer().save_pretrained(tmp_path / "aligned")
    file = rows(tmp_path / "p.jsonl", [{"prompt": f"a {w}"} for w in ("cat", "dog", "mat", "hat")])
    request = Request("token_shift", data=[file], model=str(tmp_path / "aligned"), model_b=str(tmp_path / "base"), max_new_tokens=6, max_length=64, temperature=0.0)  # fmt: skip
    found = measure(request)
    assert [i["token"] for i in found[0].items] == [tokenizer().convert_ids_to_tokens(70)]
    said = [t for row in token_ranks(request)[0][1]["token_RT"] for t in row]
    assert found[0].items[0]["shifted"] == said.count(tokenizer().convert_ids_to_tokens(70)) > 0
