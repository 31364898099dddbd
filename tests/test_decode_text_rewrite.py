"""Rewriters: Aligner, a squad of aligners with inspectors, and block-parallel rewriting."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests import model_folders
from tests.scripted_models import scripted
from tests.tiny import tiny_model
from trueline.corrections import copies, corrector_prompt, inspections, main, triples
from trueline.decoding import DecodeEngine, Request
from trueline.decoding.exact import law
from trueline.decoding.models import TableModel
from trueline.decoding.rewards import TableReward
from trueline.decoding.text_rewards import RuleReward
from trueline.encode import UNLIMITED, encode
from trueline.engine.draw import Law
from trueline.engine.policy import Policy
from trueline.errors import TruelineError
from trueline.readers import read
from trueline.recipe import read_recipe
from trueline.stages import align_stages, plan

TOKENIZER = model_folders.tokenizer()
WORDS = ["w0", "w1", "w2", "w3", "bad", "good"]


def word_tokenizer(words: list[str]) -> Any:
    """One id a word: </s> 0, <unk> 1, then these words, then those of a corrector's prompt."""
    vocabulary = ["</s>", "<unk>", *words, *dict.fromkeys(corrector_prompt("", "").split())]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


CLOSED = word_tokenizer(["q", "x", "y"])
END = 0
GREEDY = Law(0.0)
OPENING = {"aligner": "ASSISTANT:", "aligners": "[ALIGNED]"}


def said(prompt: str) -> tuple[str, str]:
    """Question and answer of an Aligner prompt."""
    question, answer = prompt.split("##Question: ")[1].split("\n##Correction:")[0].split("\n##Answer: ")
    return question, answer


def corrector(change: Any) -> TableModel:
    """A corrector that writes change(question, answer)."""
    return scripted(TOKENIZER, OPENING["aligner"], lambda prompt: change(*said(prompt)), END)


def upstream(answer: str) -> TableModel:
    """A policy that always says this."""
    return scripted(TOKENIZER, "?", lambda prompt: answer, END)


def contains(word: str) -> RuleReward:
    """1 where the text does not have the word: an inspector."""
    return RuleReward(lambda text, tokens, finished: float(word not in text))


def ask(method: str, options: dict[str, Any] | None = None, question: str = "why?", **given: Any) -> Request:
    ids = list(TOKENIZER(question, add_special_tokens=False)["input_ids"])
    return Request(
        ids, method, options or {}, prompt=question, **{"max_new_tokens": 24, "eos_ids": (END,), "law": GREEDY, **given}
    )


def engine(answer: str, change: Any, **rewards: Any) -> DecodeEngine:
    return DecodeEngine(upstream(answer), tokenizer=TOKENIZER, models={"corrector": corrector(change)}, rewards=rewards)


# -- Aligner -----------------------------------------------------------------------------------------------------------


def test_the_prompt_of_a_corrector_is_the_released_one_with_its_two_spaces() -> None:
    assert (
        corrector_prompt("q", "a")
        == "BEGINNING OF CONVERSATION: USER: ##Question: q\n##Answer: a\n##Correction:  ASSISTANT:"
    )
    assert corrector_prompt("q {x}", "a", "aligners") == "q {x} [INIT] a [ALIGNED]"
    with pytest.raises(TruelineError, match=r"no corrector template 'alinger'\. Did you mean 'aligner'"):
        corrector_prompt("q", "a", "alinger")


def test_the_answer_is_replaced_by_its_correction() -> None:
    found = engine("bad day", lambda q, a: f"{a.replace('bad', 'good')} to {q}").run([ask("aligner", scored=False)])[0][
        0
    ]
    assert found.text == "good day to why?" and found.finish == "stop" and found.ids[-1] == END
    assert found.details == {"draft": "bad day", "changed": True}
    assert found.behaviour_logp is None and found.kl is None and len(found.base_logp) == len(found.ids)
    assert found.counters.discarded_tokens == len(TOKENIZER("bad day", add_special_tokens=False)["input_ids"]) + 1


def test_a_copying_corrector_leaves_everything_as_it_was() -> None:
    plain = engine("bad day", lambda q, a: a).run([ask("plain")])[0][0]
    found = engine("bad day", lambda q, a: a).run([ask("aligner")])[0][0]
    assert (found.ids, found.behaviour_logp, found.base_logp) == (plain.ids, plain.behaviour_logp, plain.base_logp)
    assert found.details["changed"] is False


def test_an_accepted_answer_is_not_touched_and_a_threshold_above_1_always_corrects() -> None:
    world = engine("fine day", lambda q, a: "never", ok=contains("bad"))
    plain = world.run([ask("plain")])[0][0]
    kept = world.run([ask("aligner", {"inspector": "ok"})])[0][0]
    assert (kept.ids, kept.behaviour_logp, kept.text) == (plain.ids, plain.behaviour_logp, "fine day")
    assert kept.details == {"draft": "fine day", "changed": False, "inspector": [1.0]} and kept.reward is None
    assert world.run([ask("aligner", {"inspector": "ok", "threshold": 1.1})])[0][0].text == "never"
    assert (
        engine("bad day", lambda q, a: "never", ok=contains("bad"))
        .run([ask("aligner", {"inspector": "ok"})])[0][0]
        .text
        == "never"
    )


def test_a_classifiers_log_odds_become_a_probability() -> None:
    for value, accepted in ((0.1, True), (-0.1, False), (-800.0, False)):
        world = engine("fine", lambda q, a: "never", raw=TableReward(lambda ids, value=value: value, prefix=False))
        found = world.run([ask("aligner", {"inspector": "raw"})])[0][0]
        assert (found.text == "fine") is accepted
        assert found.details["inspector"][0] == pytest.approx(1 / (1 + math.exp(-value)) if value > -700 else 0.0)


def test_correcting_twice_shows_whether_a_corrector_is_idempotent() -> None:
    once = engine("a bad day", lambda q, a: a.replace("bad", "good"))
    assert once.run([ask("aligner", {"rounds": 2})])[0][0].text == once.run([ask("aligner")])[0][0].text == "a good day"
    drifting = engine("day", lambda q, a: "very " + a)
    assert drifting.run([ask("aligner", {"rounds": 2})])[0][0].text == "very very day"


def test_without_the_answer_a_corrector_has_nothing_to_correct() -> None:
    world = engine("a bad day", lambda q, a: a.replace("bad", "good") or "nothing")
    assert world.run([ask("aligner", {"drop_answer": True})])[0][0].text == "nothing"


def test_only_the_end_token_ends_a_corrector_while_stop_texts_cut_the_answer() -> None:
    seen = set()
    found = engine("a day", lambda q, a: seen.add(a) or "one. two. three").run([ask("aligner", stop=["three"])])[0][0]
    assert found.text == "one. two. " and found.stopped_by == "three" and seen == {"a day"}
    limited = engine("a day", lambda q, a: "one two three four five six").run([ask("aligner", max_new_tokens=6)])[0][0]
    assert limited.finish == "length" and len(limited.ids) == 6


def test_events_hold_the_corrected_answer_alone() -> None:
    world = engine("bad day", lambda q, a: "good day")
    world.open(ask("aligner"))
    ids: list[int] = []
    while world.busy:
        ids += [token for event in world.step() for token in event.ids]
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "good day"
    assert set(world.held().values()) == {0}


def test_a_search_over_a_marked_proposal_is_corrected_at_the_end() -> None:
    world = engine("bad day", lambda q, a: "good day", r=TableReward(len, prefix=False))
    options = {"kgw": {"delta": 1.0}, "best_of_n": {"n": 2}}
    assert world.run([ask("kgw+best_of_n+aligner", options, law=Law(1.0))])[0][0].text == "good day"
    with pytest.raises(TruelineError, match="gumbel marks draws, and 'corrector' takes"):
        world.run([ask("gumbel+aligner", law=Law(1.0))])


def test_bad_requests_of_correctors_are_refused() -> None:
    world = engine("day", lambda q, a: a)
    for options, says in (
        ({"rounds": 0}, "rounds is 0"),
        ({"threshold": 0.7}, "no effect without an inspector"),
        ({"inspector": "nobody"}, "no inspector 'nobody'"),
        ({"template": "x"}, "no corrector template"),
    ):
        with pytest.raises(TruelineError, match=says):
            world.run([ask("aligner", options)])
    with pytest.raises(TruelineError, match="needs a second model as 'corrector'"):
        DecodeEngine(upstream("day"), tokenizer=TOKENIZER).run([ask("aligner")])
    with pytest.raises(TruelineError, match="until an end token"):
        world.run([ask("aligner", eos_ids=())])


# -- the composed law --------------------------------------------------------------------------------------------------

ANSWERS = [3, 4]  # the words x and y


def composed(pi: np.ndarray, mu: np.ndarray | None) -> dict[tuple[int, ...], float]:
    """Exact law of one-word answers: pi [answer], mu [answer, correction] (None: the identity), which end at once."""

    def say(ids: Any, p: np.ndarray) -> torch.Tensor:
        logp = torch.full((len(CLOSED),), -math.inf, dtype=torch.float64)
        if ids[-1] in ANSWERS and ids[-2] != CLOSED.convert_tokens_to_ids("##Answer:"):
            logp[0] = 0.0
        else:
            logp[ANSWERS] = torch.from_numpy(np.log(p))
        return logp

    def correct(ids: Any) -> torch.Tensor:
        table = np.eye(2) * (1 - 1e-300) + 1e-300 if mu is None else mu
        answer = next((i for i in ids if i in ANSWERS), ANSWERS[0])
        return say(ids, table[ANSWERS.index(answer)])

    world = DecodeEngine(TableModel(lambda ids: say(ids, pi), len(CLOSED)), tokenizer=CLOSED, models={"corrector": TableModel(correct, len(CLOSED))})  # fmt: skip
    request = Request([2], "aligner", {"greedy": False}, prompt="q", max_new_tokens=2, eos_ids=(0,))
    return {ids[:-1]: math.exp(p) for ids, p in law(world, request).items() if p > -100}


def test_the_composed_policy_is_the_mixture_of_corrections() -> None:
    pi, mu = np.array([0.3, 0.7]), np.array([[0.9, 0.1], [0.25, 0.75]])
    found = composed(pi, mu)
    expected = pi @ mu
    assert [found[(i,)] for i in ANSWERS] == pytest.approx(expected.tolist(), abs=1e-12) and sum(
        found.values()
    ) == pytest.approx(1)
    for o, c in itertools.product(range(2), range(2)):  # the bound that training minimises
        assert -math.log(expected[c]) <= -math.log(mu[o, c]) - math.log(pi[o]) + 1e-12
    assert [composed(pi, None)[(i,)] for i in ANSWERS] == pytest.approx(pi.tolist(), abs=1e-12)
    blind = np.array([[0.6, 0.4], [0.6, 0.4]])
    assert [composed(pi, blind)[(i,)] for i in ANSWERS] == pytest.approx([0.6, 0.4], abs=1e-12)


# -- a squad -----------------------------------------------------------------------------------------------------------


def replaces(old: str, new: str, spoils: str = "") -> TableModel:
    """A corrector of one word in the markers' template; where the word is missing it adds what it should not."""

    def change(prompt: str) -> str:
        answer = prompt.split("[INIT] ")[1].split(" [ALIGNED]")[0]
        return answer.replace(old, new) if old in answer else answer + spoils

    return scripted(TOKENIZER, OPENING["aligners"], change, END)


def squad(answer: str, **judges: Any) -> DecodeEngine:
    pair = {"polite": replaces("rude", "kind", " sorry"), "exact": replaces("five", "four", " indeed")}
    found = {"manners": contains("rude"), "facts": contains("five"), **judges}
    return DecodeEngine(upstream(answer), tokenizer=TOKENIZER, models=pair, rewards=found)


SQUAD = "polite:manners exact:facts"


def test_a_squad_corrects_what_fails_and_leaves_the_rest() -> None:
    expected = {
        "a rude five": ("a kind four", ["polite", "exact"]),
        "a rude four": ("a kind four", ["polite"]),
        "a kind five": ("a kind four", ["exact"]),
        "a kind four": ("a kind four", []),
    }
    for answer, (text, applied) in expected.items():
        found = squad(answer).run([ask("aligners", {"squad": SQUAD})])[0][0]
        assert (found.text, found.details["applied"]) == (text, applied)
        if answer == text:
            assert found.ids == squad(answer).run([ask("plain")])[0][0].ids and found.behaviour_logp is not None
    always = squad("a rude four").run([ask("aligners", {"squad": SQUAD, "threshold": 1.5})])[0][0]
    assert always.text == "a kind four indeed" and sorted(always.details["applied"]) == ["exact", "polite"]
    never = squad("a rude five").run([ask("aligners", {"squad": SQUAD, "threshold": 0.0})])[0][0]
    assert never.text == "a rude five" and never.details["applied"] == []


def test_the_order_is_ascending_by_this_answers_own_scores_and_scores_are_renewed() -> None:
    graded = {
        "manners": RuleReward(lambda text, tokens, finished: 0.3 if "rude" in text else 1.0),
        "facts": RuleReward(lambda text, tokens, finished: 0.1 if "five" in text else 1.0),
    }
    found = squad("a rude five", **graded).run([ask("aligners", {"squad": SQUAD})])[0][0]
    assert found.details["applied"] == ["exact", "polite"]
    assert found.details["inspectors"] == [
        {"manners": 0.3, "facts": 0.1},
        {"manners": 0.3, "facts": 1.0},
        {"manners": 1.0, "facts": 1.0},
    ]
    settled = {"facts": RuleReward(lambda text, tokens, finished: float("rude" not in text) * 0.9 + 0.05)}
    both = squad("a rude five", **settled).run([ask("aligners", {"squad": "polite:manners exact:facts"})])[0][0]
    assert (
        both.details["applied"] == ["polite"] and both.text == "a kind five"
    )  # the first correction settled the second criterion


def test_an_answer_does_not_depend_on_its_batch() -> None:
    """The released code orders by the batch's mean scores."""
    world = squad("a rude five")
    alone = world.run([ask("aligners", {"squad": SQUAD})])[0][0]
    together = world.run(
        [ask("aligners", {"squad": SQUAD}), ask("plain"), ask("aligners", {"squad": SQUAD, "threshold": 1.5})]
    )
    assert together[0][0].ids == alone.ids and together[0][0].details == alone.details


def test_a_squad_that_cannot_work_is_refused() -> None:
    for given, says in (
        ("", "expected pairs"),
        ("polite", "expected pairs"),
        ("pollite:manners", "Did you mean 'polite'"),
        ("polite:x", "no inspector 'x'"),
    ):
        with pytest.raises(TruelineError, match=says):
            squad("a rude five").run([ask("aligners", {"squad": given})])

    def broken(ids: tuple[int, ...]) -> float:
        raise ValueError("no")

    with pytest.raises(TruelineError, match="'manners' could not judge"):
        squad("a", manners=TableReward(broken)).run([ask("aligners", {"squad": SQUAD})])


# -- data and training -------------------------------------------------------------------------------------------------


def pairs_file(folder: Path) -> str:
    rows = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(8)]
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def test_preference_pairs_become_corrections_copies_and_inspections(tmp_path: Path) -> None:
    assert main([pairs_file(tmp_path), "--output", str(tmp_path / "made"), "--copies", "0.5"]) == 0
    rows = {
        name: read([str(tmp_path / "made" / f"{name}.jsonl")])[0] for name in ("copies", "corrections", "inspector")
    }
    assert [len(rows[name]) for name in ("copies", "corrections", "inspector")] == [4, 8, 16]
    first = rows["corrections"][0]
    assert first.prompt == corrector_prompt("q0", "bad 0") and first.responses[0].text == "good 0"
    for group in rows["copies"]:
        assert f"##Answer: {group.responses[0].text}\n" in str(group.prompt)
    assert {g.responses[0].text.split()[0] for g in rows["copies"]} == {
        "good",
        "bad",
    }  # answers and corrections are copied
    assert {(g.responses[0].text.split()[0], g.responses[0].label) for g in rows["inspector"]} == {
        ("good", True),
        ("bad", False),
    }
    with pytest.raises(TruelineError, match="No group has a better"):
        triples([])
    with pytest.raises(TruelineError, match="share of copies is 0"):
        copies([{}], 0)
    assert inspections([{"question": "q", "answer": "a", "correction": "c"}])[1] == {
        "prompt": "q",
        "completion": "c",
        "label": True,
    }


def test_the_loss_counts_the_correction_and_its_end_token_alone(tmp_path: Path) -> None:
    file = tmp_path / "c.jsonl"
    file.write_text(
        json.dumps({"question": "the cat", "answer": "sat", "correction": "the dog sat"}) + "\n", encoding="utf-8"
    )
    (group,), _ = encode(read([str(file)])[0], TOKENIZER, UNLIMITED, eos_ids=(END,))
    response = group.responses[0]
    assert TOKENIZER.decode(group.prompt_ids or []) == corrector_prompt("the cat", "sat")
    assert TOKENIZER.decode(response.ids or []) == "the dog sat<|endoftext|>" and all(response.mask or [])


def test_the_recipe_is_two_legal_stages_of_supervised_fine_tuning() -> None:
    given = {"model": "m", "output": "o", "stages.copy.data": ["a"], "stages.correct.data": ["b"]}
    first, second = (stage.resolved.config for stage in plan(read_recipe("aligner"), "recipe", given)[2])
    assert (first.learning_rate, second.epochs, second.warmup, second.weight_decay) == (2e-5, 3, 0.03, 0.0)
    assert second.model == "o/stage-1-copy" and second.max_length == 2048


@pytest.mark.slow
def test_a_trained_corrector_takes_out_the_bad_word_of_an_unseen_model_and_copies_clean_answers(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """Answers of three words; the correction has 'good' for 'bad'. Warmed up on copies, then trained on corrections of dirty answers."""
    monkeypatch.chdir(tmp_path)
    tokenizer = word_tokenizer([*WORDS, "q:"])
    rng = np.random.default_rng(0)
    tiny_model("llama", vocab_size=len(tokenizer), hidden_size=48, num_hidden_layers=2, bos_token_id=0, eos_token_id=0).save_pretrained("base")  # fmt: skip
    torch.manual_seed(0)
    tokenizer.save_pretrained("base")

    def answer(dirty: bool) -> str:
        words = [WORDS[i] for i in rng.integers(0, 4, 3)]
        if dirty:
            words[rng.integers(3)] = "bad"
        return " ".join(words)

    def write(name: str, answers: list[tuple[str, str]]) -> None:
        rows = [{"question": "q:", "answer": a, "correction": c} for a, c in dict.fromkeys(answers)]
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    dirty = [answer(True) for _ in range(400)]
    write("copies.jsonl", [(a, a) for a in (answer(False) for _ in range(200))])
    write("corrections.jsonl", [(a, a.replace("bad", "good")) for a in dirty])
    shared = {
        "model": "base",
        "output": "out",
        "max_length": 64,
        "batch_size": 16,
        "learning_rate": 5e-3,
        "eval_fraction": 0,
    }
    recipe = {**read_recipe("aligner"), **shared}
    recipe["stages"] = [
        {"name": "copy", "epochs": 12, "data": ["copies.jsonl"]},
        {"name": "correct", "epochs": 10, "data": ["corrections.jsonl", "copies.jsonl"]},
    ]
    runs = align_stages(recipe)
    from transformers import AutoModelForCausalLM

    trained = Policy(AutoModelForCausalLM.from_pretrained(runs[-1].folder))
    table = torch.full((len(tokenizer),), -30.0, dtype=torch.float64)
    table[2:7] = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5], dtype=torch.float64)  # an upstream model that it has not seen

    def says(ids: Any) -> torch.Tensor:
        return table if len(ids) < 4 else torch.eye(len(tokenizer), dtype=torch.float64)[0] * 60

    world = DecodeEngine(TableModel(says, len(tokenizer)), tokenizer=tokenizer, models={"corrector": trained})
    requests = [Request([8], "aligner", prompt="q:", max_new_tokens=5, eos_ids=(0,), seed=i) for i in range(120)]
    found = [result[0] for result in world.run(requests)]
    spoilt = [f for f in found if "bad" in f.details["draft"]]
    clean = [f for f in found if "bad" not in f.details["draft"]]
    assert len(spoilt) > 30 and sum("bad" in f.text for f in spoilt) < 0.1 * len(spoilt)
    assert sum(f.text == f.details["draft"].replace("bad", "good") for f in found) > 0.85 * len(found)
    assert len(clean) > 20 and sum(not f.details["changed"] for f in clean) > 0.85 * len(clean)


# -- DiffPO ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two() -> tuple[Policy, Policy]:
    return Policy(tiny_model("llama", seed=1)), Policy(tiny_model("llama", seed=2))


def greedy_ids(model: Any, length: int, ends: tuple[int, ...] = ()) -> list[int]:
    return (
        DecodeEngine(model)
        .run([Request([5, 6, 7], "plain", max_new_tokens=length, law=GREEDY, eos_ids=ends)])[0][0]
        .ids
    )


def rewritten(
    two: tuple[Any, Any],
    options: dict[str, Any],
    length: int = 12,
    ends: tuple[int, ...] = (),
    seed: int = 0,
    **given: Any,
) -> Any:
    world = DecodeEngine(two[0], models={"rewriter": two[1]})
    result = world.run(
        [Request([5, 6, 7], "diffpo", options, max_new_tokens=length, eos_ids=ends, seed=seed, **given)]
    )[0][0]
    assert set(world.held().values()) == {0}
    return result


@pytest.mark.parametrize("block", [1, 4, 5, 256])
def test_the_fixed_point_is_the_rewriters_own_greedy_text_whatever_the_answer_was(
    two: tuple[Policy, Policy], block: int
) -> None:
    expected = greedy_ids(two[1], 12)
    for seed in range(3):
        found = rewritten(two, {"block": block}, seed=seed)
        assert found.ids == expected
        sizes = [min(block, 12 - start) for start in range(0, 12, block)]
        assert len(found.details["passes"]) == len(sizes)
        assert all(1 <= n <= size + 1 for n, size in zip(found.details["passes"], sizes, strict=True))


def test_each_pass_settles_one_more_token(two: tuple[Policy, Policy]) -> None:
    expected = greedy_ids(two[1], 12)
    for passes in range(1, 7):
        found = rewritten(two, {"passes": passes}, seed=passes)
        assert found.ids[:passes] == expected[:passes] and found.details["passes"] == [passes]


def test_the_greedy_text_itself_takes_the_one_pass_that_sees_it(two: tuple[Policy, Policy]) -> None:
    found = rewritten((two[1], two[1]), {}, law=GREEDY)
    assert (
        found.details["passes"] == [1]
        and found.details["changed"] is False
        and found.details["tokens_per_pass"] == 12.0
    )
    assert found.behaviour_logp is not None


def test_an_end_token_inside_a_block_ends_the_response_there(two: tuple[Policy, Policy]) -> None:
    free = greedy_ids(two[1], 12)
    end = next(t for i, t in enumerate(free) if i > 3 and t not in free[:i])
    expected = greedy_ids(two[1], 12, (end,))
    for block, seed in ((3, 0), (8, 1), (256, 2), (256, 3)):
        found = rewritten(two, {"block": block}, ends=(end,), seed=seed)
        assert found.ids == expected and found.finish == "stop" and found.ids.count(end) == 1
        assert found.details["tokens_per_pass"] * sum(found.details["passes"]) == pytest.approx(len(found.ids))
    early = rewritten(two, {"passes": 1}, ends=(end,), seed=4)
    assert end not in early.ids[:-1]


def test_settled_tokens_are_not_computed_again(two: tuple[Policy, Policy]) -> None:
    found = rewritten(two, {"block": 12})
    passes = found.details["passes"][0]
    whole = 3 + 12 + passes * 12  # the draft, its prompt, and every pass over the block as the released loop does it
    assert found.counters.lm_tf < whole + 3 + 12 and found.counters.depth <= 12 + passes + 2


def test_masks_and_marks_hold_for_the_rewriter_too(two: tuple[Policy, Policy]) -> None:
    found = rewritten(two, {}, allowed=lambda new: [3, 4, 5 + len(new) % 3])
    assert set(found.ids) <= {3, 4, 5, 6, 7}
    assert found.ids == DecodeEngine(two[1]).run([Request([5, 6, 7], "plain", max_new_tokens=12, law=GREEDY, allowed=lambda new: [3, 4, 5 + len(new) % 3])])[0][0].ids  # fmt: skip
    world = DecodeEngine(two[0], models={"rewriter": two[1]})
    marked = world.run([Request([5, 6, 7], "kgw+diffpo", {"kgw": {"delta": 8.0}}, max_new_tokens=12)])[0][0]
    expected = DecodeEngine(two[1]).run([Request([5, 6, 7], "kgw", {"delta": 8.0}, max_new_tokens=12, law=GREEDY)])[0][
        0
    ]
    assert marked.ids == expected.ids
    with pytest.raises(TruelineError, match="gumbel marks draws, and diffpo"):
        world.run([Request([5, 6, 7], "gumbel+diffpo", max_new_tokens=12)])
    with pytest.raises(TruelineError, match="block=0"):
        rewritten(two, {"block": 0})
