"""Methods that change the prompt: token alignment in the engine, URIAL, P-Aligner and its tree."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from tests import model_folders
from tests.scripted_models import knows, scripted
from tests.tiny import tiny_model
from trueline.decode._urial_examples import DECLINED
from trueline.decode.urial import constant
from trueline.decoding import DecodeEngine, Request
from trueline.decoding.instruction_tree import PRINCIPLES, Tree, preference_rows, rewriter_prompt, search
from trueline.decoding.models import TableModel
from trueline.decoding.rewards import ScalarReward, TableReward
from trueline.decoding.rewriting import encode_prompt
from trueline.decoding.text_rewards import RuleReward, keyword
from trueline.engine.draw import Law
from trueline.engine.policy import Policy
from trueline.errors import TruelineError

TOKENIZER = model_folders.tokenizer()
END = 0
GREEDY = Law(0.0)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy(tiny_model("llama", vocab_size=len(TOKENIZER), max_position_embeddings=8192))


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def ask(prompt: str, method: str, options: dict[str, Any] | None = None, **given: Any) -> Request:
    given = {"max_new_tokens": 12, "eos_ids": (END,), **given}
    return Request(ids_of(prompt), method, options or {}, prompt=prompt, **given)


# -- token alignment ---------------------------------------------------------------------------------------------------

LINES = ["the cat sat on the mat", "the dog and the cat", "a catalogue of the matters"]


def test_a_cut_at_any_character_is_completed_as_the_model_knows_it() -> None:
    """Plain decoding is lost where the cut moves a token boundary; aligned decoding completes the line from every cut."""
    tokenizer = model_folders.tokenizer()
    engine = DecodeEngine(knows(tokenizer, LINES, END), tokenizer=tokenizer)
    right = {"plain": 0, "token_alignment": 0}
    cuts = [(line, cut) for line in LINES for cut in range(5, len(line), 2)]
    for method in right:
        options = {"backtrack": 3} if method == "token_alignment" else {}
        results = engine.run([ask(line[:cut], method, options, law=GREEDY, max_new_tokens=20) for line, cut in cuts])
        for (line, cut), (result,) in zip(cuts, results, strict=True):
            right[method] += line[:cut] + result.text == line
    assert right["token_alignment"] == len(cuts) and right["plain"] < 0.8 * len(cuts)


def test_whole_text_starts_with_the_prompt_and_the_response_begins_after_it(policy: Policy) -> None:
    engine = DecodeEngine(policy, tokenizer=TOKENIZER)
    prompts = ["the cat s", "    ", "naïv", "the  dog\n  "]
    for (result,), prompt in zip(
        engine.run([ask(p, "token_alignment", seed=i) for i, p in enumerate(prompts)]), prompts, strict=True
    ):
        kept = ids_of(prompt)
        whole = next(
            w
            for k in range(1, len(kept) + 1)
            if (w := TOKENIZER.decode([*kept[:k], *(i for i in result.ids if i != END)])) and w.startswith(prompt)
        )
        assert whole == prompt + result.text
        assert not (set(result.ids[:2]) & set(TOKENIZER.all_special_ids))


def test_no_backtrack_is_ordinary_decoding_and_a_stable_boundary_changes_nothing(policy: Policy) -> None:
    engine = DecodeEngine(policy, tokenizer=TOKENIZER)
    plain, none = (
        engine.run([ask("the cat", m, o)])[0][0] for m, o in (("plain", {}), ("token_alignment", {"backtrack": 0}))
    )
    assert none.ids == plain.ids
    sure = DecodeEngine(knows(TOKENIZER, LINES, END), tokenizer=TOKENIZER)
    plain, aligned = (sure.run([ask("the cat sat", m, law=GREEDY)])[0][0] for m in ("plain", "token_alignment"))
    assert aligned.text == plain.text and aligned.ids[-len(plain.ids) :] == plain.ids


def test_stop_texts_and_rewards_do_not_see_what_is_written_again() -> None:
    engine = DecodeEngine(
        knows(TOKENIZER, LINES, END), tokenizer=TOKENIZER, rewards={"r": RuleReward(keyword(["sat"]))}
    )
    request = ask(
        "the cat s",
        "token_alignment",
        law=GREEDY,
        stop=["cat", " mat"],
        rewards={"r": 1.0},
        scored=True,
        max_new_tokens=30,
    )
    (result,) = engine.run([request])[0]
    assert (result.text, result.stopped_by) == (
        "at on the",
        " mat",
    ) and result.reward == 0.0  # 'sat' began in the prompt


def test_the_requests_own_mask_holds_after_the_prompt_and_the_limit_never_cuts_it(policy: Policy) -> None:
    seen: list[list[int]] = []

    def only(new: list[int]) -> list[int]:
        seen.append(list(new))
        return ids_of("x")

    engine = DecodeEngine(policy, tokenizer=TOKENIZER)
    result = engine.run([ask("the cat s", "token_alignment", allowed=only, max_new_tokens=3)])[0][0]
    assert result.text.endswith("x") and seen[0] == []
    for seed in range(8):
        short = engine.run([ask("the catalogue", "token_alignment", max_new_tokens=1, seed=seed)])[0][0]
        assert TOKENIZER.decode(ids_of("the catalogue")[:-3]) + TOKENIZER.decode(short.ids) >= "the catalogue"


def test_aligned_decoding_composes_with_search_and_mark(policy: Policy) -> None:
    engine = DecodeEngine(policy, tokenizer=TOKENIZER, rewards={"r": TableReward(len)})
    for method in ("token_alignment+args", "kgw+token_alignment+best_of_n"):
        options = {"args": {"k": 3}} if "args" in method else {"best_of_n": {"n": 3}}
        result = engine.run([ask("the cat s", method, options, max_new_tokens=5)])[0][0]
        assert "\ufffd" in result.text or TOKENIZER.decode(result.ids).lstrip().endswith(result.text)


# -- URIAL -------------------------------------------------------------------------------------------------------------


def test_the_layout_has_instruction_examples_and_an_open_fence(policy: Policy) -> None:
    text = constant(3, True, "```")
    assert text.startswith("# Instruction\n") and text.count("# Query:\n```\n") == text.count("# Answer:\n```\n") == 3
    assert DECLINED[0] in text and DECLINED[0] not in constant(3, False, "```")
    assert constant(0, True, "```").count("# Query:") == 0 and constant(0, True, "```") == constant(0, False, "```")
    assert text.startswith(constant(0, True, "```").rstrip("\n"))
    engine = DecodeEngine(policy, tokenizer=TOKENIZER)
    plan = engine.run([ask("Why is the sky blue?", "urial", {"examples": 1}, max_new_tokens=1)])
    assert plan[0][0].counters.lm_tf == len(encode_prompt(TOKENIZER, constant(1, True, "```") + "# Query:\n```\nWhy is the sky blue?\n```\n\n# Answer:\n```\n", (END,)))  # fmt: skip


def test_answers_end_at_the_fence_across_tokens_and_at_an_invented_query() -> None:
    for said, expected in (
        ("Because of air.\n```\n\n# Query:", "Because of air."),
        ("Air.\n# Query:\nwhy", "Air."),
        ("A``b", "A``b"),
    ):
        model = scripted(TOKENIZER, "# Answer:\n```\n", lambda prompt, said=said: said, END)
        engine = DecodeEngine(model, tokenizer=TOKENIZER)
        result = engine.run([ask("Why?", "urial", {"examples": 0}, law=GREEDY, max_new_tokens=60)])[0][0]
        assert (result.text, result.finish) == (expected, "stop")


def test_another_fence_leaves_code_alone() -> None:
    model = scripted(TOKENIZER, "# Answer:\n~~~~\n", lambda prompt: "```\nx = 1\n```\n~~~~", END)
    engine = DecodeEngine(model, tokenizer=TOKENIZER)
    request = ask("Code?", "urial", {"examples": 0, "fence": "~~~~"}, law=GREEDY, max_new_tokens=60)
    assert engine.run([request])[0][0].text == "```\nx = 1\n```"
    with pytest.raises(TruelineError, match="The query holds the fence"):
        engine.run([ask("What is ``` for?", "urial")])


def test_the_constant_prefix_is_read_once_and_changes_no_token(policy: Policy) -> None:
    asked = [
        ask(q, "urial", {"examples": 1}, law=GREEDY, max_new_tokens=6) for q in ("Why is it so?", "How do I cook rice?")
    ]
    plain, kept = (
        DecodeEngine(policy, tokenizer=TOKENIZER),
        DecodeEngine(policy, tokenizer=TOKENIZER, prefix_tokens=8192),
    )
    without = [plain.run([request])[0][0] for request in asked]
    cached = [kept.run([request])[0][0] for request in asked]
    assert [r.ids for r in cached] == [r.ids for r in without]
    assert torch.tensor(cached[1].base_logp).allclose(torch.tensor(without[1].base_logp), atol=1e-5)
    assert cached[0].counters.lm_tf == without[0].counters.lm_tf
    assert cached[1].counters.lm_tf < 60 < 500 < without[1].counters.lm_tf


def test_rewards_read_the_original_prompt(policy: Policy) -> None:
    judge = ScalarReward(
        Policy(
            tiny_model("llama", head="scalar", vocab_size=len(TOKENIZER), max_position_embeddings=8192), head="scalar"
        )
    )
    engine = DecodeEngine(policy, tokenizer=TOKENIZER, rewards={"r": judge})
    request = ask("Why is it so?", "urial", {"examples": 0}, scored=True, rewards={"r": 1.0}, max_new_tokens=5)
    result = engine.run([request])[0][0]
    assert result.counters.rm_tf == len(ids_of("Why is it so?")) + len(result.ids)
    again = engine.run([ask("Why is it so?", "plain", allowed=lambda new: [result.ids[len(new)]], rewards={"r": 1.0}, scored=True, max_new_tokens=len(result.ids))])  # fmt: skip
    assert again[0][0].reward == pytest.approx(result.reward, abs=1e-5)


def test_urial_refuses_what_it_cannot_do(policy: Policy) -> None:
    engine = DecodeEngine(policy, tokenizer=TOKENIZER)
    for options, says in (({"examples": 4}, "examples is 4"), ({"fence": " "}, "fence is ' '")):
        with pytest.raises(TruelineError, match=says):
            engine.run([ask("Why?", "urial", options)])
    with pytest.raises(TruelineError, match="needs the query as text"):
        engine.run([Request(ids_of("Why?"), "urial", {}, eos_ids=(END,))])


# -- P-Aligner ---------------------------------------------------------------------------------------------------------


def rewriting(reply: Any) -> DecodeEngine:
    """A policy that knows what to say to two instructions, and a rewriter that is scripted."""
    rewriter = scripted(TOKENIZER, "### Better instruction\n", reply, END)
    policy = knows(TOKENIZER, ["the cat sat", "a dog and the mat"], END)
    return DecodeEngine(
        policy, tokenizer=TOKENIZER, models={"rewriter": rewriter}, rewards={"mat": RuleReward(keyword(["mat"]))}
    )


def test_the_rewritten_instruction_is_answered_and_the_raw_one_stays_where_there_is_none() -> None:
    request = ask("the cat", "p_aligner", law=GREEDY)
    found = rewriting(lambda prompt: "a dog").run([request])[0][0]
    assert found.details["instruction"] == "a dog" and found.text == " and the mat"
    for reply in ("", "   ", "a dog" * 40):  # nothing, blank, far too long
        found = rewriting(lambda prompt, reply=reply: reply).run([request])[0][0]
        assert found.details["instruction"] == "the cat" and found.text == " sat"
    cut = rewriting(lambda prompt: "a dog that never ends").run(
        [ask("the cat", "p_aligner", {"max_tokens": 3}, law=GREEDY)]
    )[0][0]
    assert cut.details["instruction"] == "the cat"


def test_the_rewriter_is_asked_for_the_raw_instruction_and_stop_texts_do_not_end_it() -> None:
    seen = set()
    engine = rewriting(lambda prompt: seen.add(prompt) or "a dog")
    result = engine.run([ask("the cat", "p_aligner", law=GREEDY, stop=["dog"])])[0][0]
    assert result.details["instruction"] == "a dog" and seen == {rewriter_prompt("the cat")}
    assert engine.held() == {"policy": 0, "rewriter": 0}


def test_in_a_conversation_the_last_user_turn_is_rewritten() -> None:
    chat = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "the"},
        {"role": "user", "content": "the cat"},
    ]
    better = [*chat[:-1], {"role": "user", "content": "a dog"}]
    ids = encode_prompt(TOKENIZER, chat, (END,))
    rewriter = scripted(TOKENIZER, "### Better instruction\n", lambda prompt: "a dog", END)
    seen = []

    def flat(given: Any) -> torch.Tensor:
        seen.append(list(given))
        return torch.zeros(len(TOKENIZER), dtype=torch.float64)

    engine = DecodeEngine(TableModel(flat, len(TOKENIZER)), tokenizer=TOKENIZER, models={"rewriter": rewriter})
    engine.run([Request(ids, "p_aligner", prompt=chat, max_new_tokens=1, eos_ids=(END,))])
    assert encode_prompt(TOKENIZER, better, (END,)) in seen
    with pytest.raises(TruelineError, match="render the prompt differently"):
        engine.run([Request(ids_of("hi"), "p_aligner", prompt=chat, max_new_tokens=1, eos_ids=(END,))])


def test_the_tree_is_searched_with_the_requests_reward_on_the_raw_prompt() -> None:
    engine = rewriting(lambda prompt: "a dog" if PRINCIPLES[2] in prompt else "the cat")
    request = ask("the cat", "p_aligner", {"rounds": 10, "samples": 1}, law=GREEDY, rewards={"mat": 1.0})
    found = engine.run([request])[0][0]
    tree = Tree.from_json(json.loads(json.dumps(found.details["tree"])))
    assert tree.nodes[tree.best].principle == 2 and found.text == " and the mat" and tree.fresh == (1.0, 0.0)
    same = rewriting(lambda prompt: "the cat").run([request])[0][0]
    assert same.details["tree"]["best"] == 0 and same.text == " sat"
    assert engine.held()["policy"] == 0
    with pytest.raises(TruelineError, match="no effect without rounds"):
        engine.run([ask("the cat", "p_aligner", {"samples": 2})])
    with pytest.raises(TruelineError, match="both write the prompt"):
        engine.run([ask("the cat", "p_aligner+urial")])


# -- the tree ----------------------------------------------------------------------------------------------------------


def add(text: str, principle: str) -> str:
    return text + principle


def test_the_search_visits_the_predicted_nodes() -> None:
    """Two principles, rewards by text, no exploration: after both children the better one is gone into, and so on."""
    rewards = {"r": 0.0, "ra": 1.0, "rb": 0.4, "rab": 3.0, "rba": 0.9}
    order: list[str] = []

    def simulate(text: str) -> list[float]:
        order.append(text)
        return [rewards[text]]

    tree = search("r", "ab", add, simulate, rounds=5, exploration=0.0)
    assert set(order[:2]) == {"ra", "rb"} and order[2:5] == [
        "rab",
        "rab",
        "rab",
    ]  # a leaf with nothing left is sampled again
    assert order[5:] == ["r", "rab", "r"]  # the root last, then the winner and the root anew
    assert tree.nodes[tree.best].text == "rab" and tree.nodes[0].value == 3.0
    a = next(i for i, n in enumerate(tree.nodes) if n.text == "ra")
    assert (
        tree.quality(a) == 2.0 and tree.nodes[a].value == 3.0 and tree.nodes[a].visits == 4
    )  # Q is a mean, the value a maximum
    b = next(n for n in tree.nodes if n.text == "rb")
    assert (b.value, b.visits, tree.nodes[0].visits) == (0.4, 1, 5)


def test_exploration_goes_back_to_what_was_seldom_tried() -> None:
    rewards = {"r": 0.0, "ra": 1.0, "rb": 0.4, "rab": 1.0, "rba": 0.9}
    tree = search("r", "ab", add, lambda text: [rewards[text]], rounds=8, exploration=2.0)
    assert "rba" in [n.text for n in tree.nodes]
    bound = {
        n.text: tree.quality(i) + 2.0 * math.sqrt(math.log(8) / n.visits)
        for i, n in enumerate(tree.nodes)
        if n.parent == 0
    }
    chosen = tree.nodes[tree.select(2, 2.0)]
    top = max(bound, key=lambda text: bound[text])
    assert chosen.text.startswith(top)


def test_identical_rewrites_leave_the_root_and_one_round_is_one_random_principle() -> None:
    tree = search("r", PRINCIPLES, lambda text, principle: text, lambda text: [0.3], rounds=10)
    assert tree.best == 0 and tree.pairs() == [] and tree.fresh is None
    assert {n.parent for n in tree.nodes[1:]} == {0}  # ten principles, ten rounds: best of ten rewrites
    firsts = set()
    for seed in range(30):
        one = search("r", PRINCIPLES, lambda text, principle: principle, lambda text: [1.0], rounds=1, seed=seed)
        assert len(one.nodes) == 2
        firsts.add(one.nodes[1].principle)
    assert len(firsts) > 5


def test_a_winner_by_chance_does_not_survive_fresh_samples() -> None:
    calls: list[str] = []

    def simulate(text: str) -> list[float]:
        calls.append(text)
        return [1.0 if text == "ra" and calls.count("ra") == 1 else 0.5]

    tree = search("r", "a", add, simulate, rounds=1)
    assert tree.fresh == (0.5, 0.5) and tree.best == 0


def test_a_tree_is_saved_whole_and_makes_training_pairs() -> None:
    tree = search("r", "abc", add, lambda text: [float(len(text)), float(text.count("b"))], rounds=6)
    assert Tree.from_json(json.loads(json.dumps(tree.to_json()))) == tree
    rows = preference_rows([tree])
    assert rows and all(row["prompt"] == rewriter_prompt("r") and row["chosen"] != row["rejected"] for row in rows)
    own = {n.text: n.own for n in tree.nodes}
    assert all(own[row["chosen"]] > own[row["rejected"]] for row in rows)  # type: ignore[operator]
    assert len(tree.pairs(margin=1.0)) < len(tree.pairs())


def test_search_beats_random_rewrites_only_where_principles_interact() -> None:
    """Reward of a set of applied principles; the same number of scored rewrites for the tree and for single ones."""

    def best(reward: Any) -> tuple[float, float]:
        tree = search("", "abc", add, lambda text: [reward(text)], rounds=12, exploration=0.5)
        found = max(n.own for n in tree.nodes if n.own is not None)
        return found, max(reward(p) for p in "abc")

    together, single = best(lambda text: float("a" in text and "c" in text) + 0.1 * ("a" in text))
    assert together > single + 0.5
    together, single = best(lambda text: float(text.count("b") > 0))
    assert together == single


def test_nothing_to_go_by_is_an_error() -> None:
    with pytest.raises(TruelineError, match="could be scored"):
        search("r", "a", add, lambda text: [math.nan])
    with pytest.raises(TruelineError, match="0 rounds"):
        search("r", "a", add, lambda text: [1.0], rounds=0)
