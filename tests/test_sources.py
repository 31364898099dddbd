"""Sources: what they draw from whom, what they remember, and that a run through them repeats and resumes to the byte."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tests.test_sources as here
from tests import objective_runs
from tests.model_folders import model_folder, tokenizer
from tests.openai_server import completion, serving
from tests.tiny import tiny_lora, tiny_model
from trueline import catalogue
from trueline.chat import Chat
from trueline.cli import flags
from trueline.cli.align import _recipe
from trueline.engine.policy import Policy, adapter_off, frozen_copy
from trueline.engine.sampler import Sample, sample
from trueline.errors import TruelineError
from trueline.groups import Group, Response
from trueline.lab import mutate
from trueline.lab.world import world
from trueline.options import Layer, parse_objective, resolve_layers
from trueline.recipe import PACKAGED, packaged, read_recipe
from trueline.registry import load
from trueline.sources.contract import SourceContext, restore_source, source_state
from trueline.sources.evolving import informativeness
from trueline.toolkit import Toolkit

pytestmark = pytest.mark.slow  # seconds together: `make test` runs them, `make quick` does not

# ---- sampling from policy and reference together ---------------------------------------------------------------------

PROMPTS = [[5, 9, 11], [7], [3, 4, 5, 6, 7, 8, 9, 10]]


def parted(family="llama", lora=False):
    """A policy that is no longer its reference."""
    model = tiny_lora(tiny_model(family)) if lora else tiny_model(family)
    policy = Policy(model, reference="adapter_off" if lora else frozen_copy(model))
    with torch.no_grad():
        for i, p in enumerate(p for p in model.parameters() if p.requires_grad):
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    return policy


def draw(policy, share, **changed):
    given = {"max_new_tokens": 10, "eos_ids": [2], "seed": 4, "reference_share": share, **changed}
    return sample(policy, PROMPTS, 3, **given)


def fields(drawn):
    return [(s.ids, s.behaviour_logp, s.full_logp, s.finish) for rows in drawn for s in rows]


def test_a_share_of_zero_is_the_policy_and_of_one_the_reference_to_the_bit():
    policy = parted()
    assert fields(draw(policy, 0.0)) == fields(sample(policy, PROMPTS, 3, max_new_tokens=10, eos_ids=[2], seed=4))
    alone = Policy(policy.reference_model)
    assert fields(draw(policy, 1.0)) == fields(draw(alone, 0.0))
    assert fields(draw(policy, 1.0)) != fields(draw(policy, 0.0))


def plain(policy, row, reference):
    """Next-token logits of one model on one row, from a plain call."""
    model = policy.model
    with torch.no_grad():
        if reference and policy.reference_model is not None:
            with policy._reference_backbone.plain_attention():
                return policy.reference_model(input_ids=torch.tensor([row])).logits[0]
        with policy.plain_attention():
            if not reference:
                return model(input_ids=torch.tensor([row])).logits[0]
            with adapter_off(model):
                return model(input_ids=torch.tensor([row])).logits[0]


def mixture_gap(policy, share, temperature=1.0):
    """Largest difference of a recorded log-prob from log_softmax of the mixed plain logits."""
    gaps, drawn = [], draw(policy, share, temperature=temperature, max_rows=4)
    for prompt, rows in zip(PROMPTS, drawn, strict=True):
        for s in rows:
            row = prompt + s.ids
            mixed = (1 - share) * plain(policy, row, False) + share * plain(policy, row, True)
            law = (mixed[len(prompt) - 1 : -1] / temperature).log_softmax(-1)
            gaps.append((law.gather(1, torch.tensor(s.ids)[:, None])[:, 0] - torch.tensor(s.full_logp)).abs().max())
    return float(max(gaps))


@pytest.mark.parametrize("lora", [False, True])
def test_the_recorded_log_probs_are_those_of_the_geometric_mixture(lora):
    policy = parted(lora=lora)
    assert mixture_gap(policy, 0.4) < 1e-5
    assert mixture_gap(policy, 0.7, temperature=0.5) < 1e-5


@pytest.mark.slow
def test_a_model_on_its_own_cache_mixes_as_well():
    # A recurrent scan in fp32 rounds otherwise step by step than whole: 2e-5 on some processors.
    assert mixture_gap(parted("falcon_h1"), 0.4) < 1e-4


def test_a_mixture_is_drawn_in_the_proportions_of_its_law():
    from scipy.stats import chisquare

    policy = parted()
    drawn = sample(policy, [[5, 9]], 3000, max_new_tokens=1, eos_ids=[2], seed=1, reference_share=0.5)
    law = (0.5 * (plain(policy, [5, 9], False) + plain(policy, [5, 9], True))[-1]).softmax(-1).double().numpy()
    counts = np.bincount([s.ids[0] for s in drawn[0]], minlength=len(law))
    common = law * 3000 >= 5
    seen, expected = np.append(counts[common], counts[~common].sum()), np.append(law[common], law[~common].sum())
    assert chisquare(seen, expected / expected.sum() * seen.sum()).pvalue > 1e-3


def test_sampling_leaves_adapters_and_their_training_flags_as_they_were():
    policy = parted(lora=True)
    before = {n: p.requires_grad for n, p in policy.model.named_parameters()}
    own = fields(draw(policy, 0.0))
    draw(policy, 0.5), draw(policy, 1.0)
    assert {n: p.requires_grad for n, p in policy.model.named_parameters()} == before
    assert fields(draw(policy, 0.0)) == own


def test_the_reference_of_a_policy_that_has_none_cannot_be_sampled():
    for share in (0.5, 1.0):
        with pytest.raises(TruelineError, match=r"without a reference|needs a policy that has one"):
            draw(Policy(tiny_model("llama")), share)
    with pytest.raises(TruelineError, match="from 0 to 1"):
        draw(parted(), 1.5)


# ---- sources on a model that says who was asked ----------------------------------------------------------------------


class Model:
    """Stands in for the run's model: its samples spell out how they were drawn. version: its weights."""

    def __init__(self):
        self.version = 0
        self.calls = []

    def sample(self, groups, samples, seed, *, temperature=1.0, top_p=1.0, top_k=0, reference_share=0.0):
        author = {0.0: "policy", 1.0: "reference"}.get(reference_share, "mixture")
        self.calls.append((author, samples, temperature, reference_share, seed))
        return [
            replace(
                g,
                responses=[
                    Response(text=f"{author} v{self.version} {g.prompt} {n} {seed}", source=author, finish="stop")
                    for n in range(samples)
                ],
            )
            for g in groups
        ]


def data_groups(count=6):
    return [
        Group(
            f"p{i}",
            [Response(text="good", rank=0, reward=3.0), Response(text="bad", rank=1, reward=1.0)],
            origin=f"row {i}",
        )
        for i in range(count)
    ]


def opened(name, groups=None, toolkit=None, **options):
    model = Model()
    context = SourceContext(groups or data_groups(), 2, 7, model.sample, toolkit)
    return load("sources", name).call(context, **options), model


def test_reference_pair_sets_a_response_of_the_reference_beside_one_of_the_policy():
    source, model = opened("reference_pair", temperature=0.7)
    for group in source(3):
        assert [r.source for r in group.responses] == ["policy", "reference"]
    assert [c[:3] for c in model.calls] == [("policy", 1, 0.7), ("reference", 1, 0.7)]
    assert model.calls[0][-1] != model.calls[1][-1], "one stream would give both the same random numbers"


def test_previous_joins_a_greedy_response_to_the_data_whose_labels_go():
    groups = data_groups()
    source, model = opened("previous", groups)
    for group in source(0):
        assert [r.source for r in group.responses] == ["data", "data", "previous"]
        assert all(r.reward is None and r.rank is None for r in group.responses)
    assert model.calls[0][:4] == ("reference", 1, 0.0, 1.0)
    assert all(r.reward is not None for g in groups for r in g.responses), "the data themselves were changed"
    with pytest.raises(TruelineError, match="row 0 has none"):
        opened("previous", [replace(g, responses=[]) for g in groups])


def test_a_mixture_writes_all_responses_or_the_last_one():
    source, model = opened("mixture", kappa=0.25)
    assert [[r.source for r in g.responses] for g in source(0)] == [["mixture"] * 2] * 2
    assert model.calls[0][3] == 0.25
    source, model = opened("mixture", kappa=0.25, mixed="last", samples=3)
    assert [[r.source for r in g.responses] for g in source(0)] == [["policy", "policy", "mixture"]] * 2
    assert len({c[-1] for c in model.calls}) == 2
    for bad in ({"kappa": 1.2}, {"mixed": "last", "samples": 1}):
        with pytest.raises(TruelineError, match=r"sources\.mixture"):
            opened("mixture", **bad)


def test_best_of_n_draws_from_the_reference_and_keeps_nothing_by_itself():
    source, model = opened("best_of_n", samples=5)
    assert [[r.source for r in g.responses] for g in source(0)] == [["reference"] * 5] * 2
    assert model.calls[0][1:4] == (5, 1.0, 1.0)


# ---- stale samples ---------------------------------------------------------------------------------------------------


def ages(source, model, steps):
    """(weights that drew it, recorded step) of each step's samples; the model is trained once a step."""
    found = []
    for step in range(steps):
        model.version = step
        responses = [r for g in source(step) for r in g.responses]
        found.append(({int(r.text.split()[1][1:]) for r in responses}, {r.policy_step for r in responses}))
    return found


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_a_step_trains_on_samples_of_the_weights_staleness_steps_ago(staleness):
    found = ages(*opened("async_policy", staleness=staleness), steps=6)
    assert found == [({max(0, s - staleness)}, {max(0, s - staleness)}) for s in range(6)]


def test_stale_samples_have_the_prompts_and_streams_of_fresh_ones():
    stale, _ = opened("async_policy", staleness=2)
    fresh, _ = opened("policy")
    for step in range(4):
        assert [r.text for g in stale(step) for r in g.responses] == [r.text for g in fresh(step) for r in g.responses]


def test_a_queue_of_stale_samples_survives_a_checkpoint():
    whole, model = opened("async_policy", staleness=2)
    for step in range(3):
        model.version = step
        whole(step)
    kept = json.loads(json.dumps(source_state(whole)))
    again, other = opened("async_policy", staleness=2)
    restore_source(again, kept)
    for step in range(3, 6):
        model.version = other.version = step
        assert whole(step) == again(step)


def test_a_negative_staleness_is_refused():
    with pytest.raises(TruelineError, match="staleness is -1"):
        opened("async_policy", staleness=-1)


# ---- prompts that evolve ---------------------------------------------------------------------------------------------


def harder(prompt, seed):
    return prompt + "+"


def same(prompt, seed):
    return prompt


def kit(create=harder):
    def encode(groups):
        return [replace(g, prompt_ids=[1]) for g in groups if len(str(g.prompt)) < 5]

    return SimpleNamespace(
        creator=lambda spec: lambda prompts, seed: [create(p, seed + i) for i, p in enumerate(prompts)], encode=encode
    )


def judge(groups, only=None):
    """Rewards that differ by one within the prompts named, and are equal in the others."""
    for group in groups:
        for i, response in enumerate(group.responses):
            response.reward = float(i == 0 and (only is None or group.prompt in only))


def run_source(source, steps, only=None, first=0):
    seen = []
    for step in range(first, steps):
        groups = source(step)
        judge(groups, only)
        seen.append([g.prompt for g in groups])
    return seen


def test_informativeness_is_blind_to_a_shift_and_linear_in_scale_and_zero_without_a_difference():
    def of(rewards, kind):
        return informativeness(Group("p", [Response(reward=r) for r in rewards]), kind)

    assert (of([1.0, 4.0, 2.0], "gap"), of([1.0, 4.0, 1.0], "advantage")) == (3.0, 2.0)
    for kind, power in (("gap", 1), ("advantage", 1), ("variance", 2)):
        base = of([1.0, 4.0, 2.0], kind)
        assert base > 0 and of([2.0, 2.0], kind) == of([1.0], kind) == of([None, 1.0], kind) == 0.0
        assert of([11.0, 14.0, 12.0], kind) == pytest.approx(base)
        assert of([3.0, 12.0, 6.0], kind) == pytest.approx(3**power * base)


def test_only_prompts_with_different_rewards_are_rewritten():
    source, _ = opened("evolving", toolkit=kit(), creator="x", every=3, evolved=1 / 3, informative=1.0, samples=2)
    run_source(source, 3, only={"p2", "p4"})
    new = {p for batch in run_source(source, 6, first=3) for p in batch if p.endswith("+")}
    assert new == {"p2+", "p4+"}


def test_without_new_prompts_every_round_is_a_draw_from_the_data():
    source, _ = opened("evolving", toolkit=None, creator="x", every=3, evolved=0.0, samples=2)
    for turn in range(3):
        seen = [p for batch in run_source(source, 3 * turn + 3, first=3 * turn) for p in batch]
        assert sorted(seen) == [f"p{i}" for i in range(6)]


def test_a_creator_that_changes_nothing_leaves_the_data():
    source, _ = opened("evolving", toolkit=kit(same), creator="x", every=3, evolved=0.5, samples=2)
    assert {p for batch in run_source(source, 9) for p in batch} == {f"p{i}" for i in range(6)}


def test_rewards_that_are_all_equal_leave_the_data():
    source, _ = opened("evolving", toolkit=kit(), creator="x", every=3, evolved=0.5, samples=2)
    assert {p for batch in run_source(source, 9, only=set()) for p in batch} == {f"p{i}" for i in range(6)}


def test_a_round_has_its_share_of_new_prompts_and_no_more():
    def many(prompt, seed):
        return f"{prompt}{seed % 89}"

    source, _ = opened("evolving", toolkit=kit(many), creator="x", every=3, evolved=0.5, informative=1.0, samples=2)
    run_source(source, 3)
    second = [p for batch in run_source(source, 6, first=3) for p in batch]
    assert sum(len(p) > 2 for p in second) == 3 and len(set(second)) == 6


def test_old_prompts_stay_beside_new_ones_and_what_does_not_fit_is_left_out():
    source, _ = opened("evolving", toolkit=kit(), creator="x", every=3, evolved=0.5, informative=0.5, samples=2)
    batches = run_source(source, 12)
    for turn in range(1, 4):
        round_ = [p for batch in batches[3 * turn : 3 * turn + 3] for p in batch]
        assert any("+" in p for p in round_) and any("+" not in p for p in round_)
    assert max(len(p) for batch in batches for p in batch) == 4  # the encoder refuses longer ones


def test_the_pool_survives_a_checkpoint_in_the_middle_of_a_round():
    options = {"toolkit": kit(), "creator": "x", "every": 3, "evolved": 0.5, "informative": 0.5, "samples": 2}
    whole, _ = opened("evolving", **options)
    run_source(whole, 5, only={"p1", "p3", "p1+"})
    kept = json.loads(json.dumps(source_state(whole)))
    again, _ = opened("evolving", **options)
    restore_source(again, kept)
    assert run_source(whole, 10, first=5) == run_source(again, 10, first=5)


@pytest.mark.parametrize("bad", [{"every": 0}, {"evolved": 1.5}, {"informative": 0.0}])
def test_shares_that_make_no_sense_are_refused(bad):
    with pytest.raises(TruelineError, match=r"sources\.evolving"):
        opened("evolving", toolkit=kit(), creator="x", **bad)


def test_the_labs_creator_asks_for_more_or_for_something_else_and_never_for_a_held_out_prompt():
    here_, made = world("unit"), []
    for seed, prompt in enumerate(here_.train[:60]):
        new = mutate.unit(prompt, seed)
        if new is not None:
            made.append((here_.ask(prompt), here_.ask(new)))
    assert len(made) > 50 and all(new.text in here_.train and new != old for old, new in made)
    assert all(len(new.facets) > len(old.facets) or new.full > old.full for old, new in made if new.item == old.item)
    assert {new.item == old.item for old, new in made} == {True, False}
    assert mutate.unit("who are you ?", 0) is None


# ---- trajectories ----------------------------------------------------------------------------------------------------


def weather(prompt, messages, **columns):
    """Answers the first turn, and ends the trajectory after the second."""
    return " sun 7:" if len(messages) == 1 else None


def talkative(prompt, messages, **columns):
    return {"role": "user", "content": f"and then {len(messages)}"}


def broken(prompt, messages, **columns):
    raise ValueError("no network")


def useless(prompt, messages, **columns):
    return 3


class Talker:
    """A toolkit whose policy says 1, 2 and its end token 0; environments speak in tokens of 9."""

    def __init__(self, act, room=20, cut_off=()):
        self.act, self.limit, self.cut_off, self.asked = act, room, cut_off, []

    def function(self, target, what):
        return self.act

    def room(self, group):
        return self.limit

    def speak(self, rows, rooms, seed, streams, **law):
        self.asked.append((rows, rooms, streams))
        ended = [s not in self.cut_off for s in streams]
        made = [[1, 2, 0] if e else [1] * r for e, r in zip(ended, rooms, strict=True)]
        return [
            Sample(ids, [-1.0] * len(ids), [-1.0] * len(ids), "stop" if e else "length")
            for ids, e in zip(made, ended, strict=True)
        ]

    def text(self, ids):
        return "says"

    def observe(self, group, messages):
        return [9] * len(messages[-1]["content"])


def test_turns_of_policy_and_environment_are_laid_end_to_end_and_only_the_policys_count():
    kit_ = Talker(lambda prompt, messages, **columns: "ab" if len(messages) == 1 else None)
    groups = [replace(g, prompt_ids=[5, 5]) for g in data_groups(2)]
    source, _ = opened("rollout", groups, toolkit=kit_, environment="m:f", samples=2)
    for group in source(0):
        for r in group.responses:
            assert r.ids == [1, 2, 0, 9, 9, 1, 2, 0] and r.finish == "stop"
            assert r.mask == [True] * 3 + [False] * 2 + [True] * 3
            assert r.behaviour_logp == r.full_logp == [-1.0] * 3 + [0.0] * 2 + [-1.0] * 3
            assert r.text == "saysabsays"
    (first, rooms, streams), (second, later, _) = kit_.asked
    assert first == [[5, 5]] * 4 and second == [[5, 5, 1, 2, 0, 9, 9]] * 4
    assert rooms == [20] * 4 and later == [15] * 4 and streams == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "length"),
    [({"turns": 2}, 8), ({"room": 5}, 3), ({"cut_off": (0, 1)}, 20)],
    ids=["turns", "room", "an endless turn"],
)
def test_a_trajectory_that_is_cut_off_says_so(options, length):
    settings = {k: options[k] for k in ("room", "cut_off") if k in options}
    kit_ = Talker(lambda prompt, messages, **columns: "ab", **settings)
    source, _ = opened(
        "rollout",
        [replace(g, prompt_ids=[5]) for g in data_groups(2)],
        toolkit=kit_,
        environment="m:f",
        samples=1,
        turns=options.get("turns", 50),
    )
    responses = [r for g in source(0) for r in g.responses]
    assert {r.finish for r in responses} == {"length"} and {len(r.ids) for r in responses} == {length}
    assert all(r.mask[-1] for r in responses)


def test_the_template_renders_what_comes_between_two_turns_and_nothing_that_was_sampled():
    made = tokenizer()
    chat = Chat(made, made.convert_tokens_to_ids(["<|im_end|>"]))
    group = Group([{"role": "user", "content": "hi"}])
    turns = [{"role": "assistant", "content": "the cat"}, {"role": "tool", "content": "sat"}]
    assert chat.between(group, turns) == "\n<|im_start|>tool\nsat<|im_end|>\n<|im_start|>assistant\n"
    whole = made.apply_chat_template([*group.prompt, *turns], add_generation_prompt=True, tokenize=False)
    opened = made.apply_chat_template(group.prompt, add_generation_prompt=True, tokenize=False)
    assert whole == opened + "the cat<|im_end|>" + chat.between(group, turns)


def numbered(prompt, seed):
    return 7


def test_a_creator_is_a_function_or_a_server_and_what_it_says_is_taken_as_it_is():
    tools = Toolkit(SimpleNamespace(max_prompt_length=None, max_length=64), None, None, None)
    made = tools.creator(f"{here.__name__}:exclaim")(["a", "b"], 3)
    assert made == tools.creator(f"{here.__name__}:exclaim")(["a", "b"], 3) and made[0].startswith("a!")
    with pytest.raises(TruelineError, match=r"returned int for 'a'"):
        tools.creator(f"{here.__name__}:numbered")(["a"], 3)


def test_a_creator_behind_a_server_is_asked_to_rewrite_and_an_empty_answer_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("TRUELINE_CACHE", str(tmp_path))
    asked = []

    def answer(question, number):
        asked.append(question)
        return completion("  a harder one \n" if "first" in question else "")

    with serving(answer) as server:
        made = Toolkit(SimpleNamespace(max_prompt_length=None, max_length=64), None, None, None).creator(
            f"writer@{server.url}"
        )(["first", "second"], 1)
    assert made == ["a harder one", None]
    assert len(asked) == 2 and all("Write the new prompt and nothing else" in q for q in asked)


# ---- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [r.name for r in packaged() if "stages" not in read_recipe(r.name)])
def test_a_packaged_recipe_resolves_by_its_name_with_a_model_data_and_a_judge(name):
    values = read_recipe(name)
    judge = {"feedback": "rule:tests.objective_runs:vowels"} if values.get("source") else {}
    given = {"model": "m", "data": "d", "output": "o", **judge}
    wanted = [
        catalogue.entry("objectives", n).declared.get("teachers", 0) for n in parse_objective(values["objective"])
    ]
    if max(wanted):
        given |= {"teachers": ["t"] * max(wanted)}
    config = resolve_layers(Layer(values, name), Layer(given, "test")).config
    assert set(config.objective) <= set(catalogue.names("objectives"))


def test_the_recipes_hold_the_papers_numbers():
    assert read_recipe("mpo")["objective"] == {"dpo": 0.8, "bco_pair": 0.2, "sft": 1.0}
    raft = read_recipe("raft")
    assert (raft["objective"], raft["source"], raft["samples"], raft["selector"]) == ("sft", "policy", 32, "best")
    described = {r.name: r.arxiv for r in packaged()}
    assert (described["mpo"], described["raft"]) == ("2411.10442", "2304.06767")


def test_a_recipe_goes_by_its_name_first_or_behind_a_flag_but_not_both(tmp_path, monkeypatch):
    assert _recipe(*flags.parse(["--recipe", "mpo", "--steps", "3"])) == ("mpo", {"steps": "3"})
    assert _recipe(*flags.parse(["mpo", "--steps", "3"])) == ("mpo", {"steps": "3"})
    with pytest.raises(TruelineError, match="Keep one"):
        _recipe(*flags.parse(["mpo", "--recipe", "raft"]))
    with pytest.raises(TruelineError, match=r"There is no recipe 'rafft'.*raft"):
        read_recipe("rafft")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mpo").write_text("objective: ipo\n")
    assert read_recipe("mpo") == {"objective": "ipo"}, "a file of that name is a file"


def test_recipes_are_part_of_the_package():
    import tomllib

    project = tomllib.loads((PACKAGED.parents[1] / "pyproject.toml").read_text())
    assert "recipes/*.yaml" in project["tool"]["setuptools"]["package-data"]["trueline"]


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    return str(model_folder(folder / "m")), objective_runs.write_data(folder)


@pytest.fixture
def run(given, tmp_path):
    """align with small defaults; each call may override them."""

    def call(**options):
        from trueline.align import align

        model, data = given
        common = {"model": model, "data": [data["scored"]], "steps": 2, "batch_size": 4, "learning_rate": 1e-3}
        common |= {"feedback": ["rule:tests.objective_runs:vowels"], "output": str(tmp_path / "run")}
        return align(**{**common, "max_length": 64, "max_response_length": 8, **options})

    return call


def stream(done):
    return [json.loads(line) for line in (done.folder / "trueline" / "stream.jsonl").read_text().splitlines()]


SAMPLING = {
    "reference_pair": {},
    "previous": {},
    "mixture": {"mixed": "last"},
    "best_of_n": {"samples": 3},
    "async_policy": {"samples": 3, "staleness": 2},
    "evolving": {"creator": f"{here.__name__}:exclaim", "every": 1, "samples": 3},
    "rollout": {"environment": f"{here.__name__}:weather", "samples": 3, "max_response_length": 16},
}


def exclaim(prompt, seed):
    return f"{prompt}{'!' * (1 + seed % 3)}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "objective"),  # data responses, beside which `previous` puts its own, have no law of their draw
    [(s, o) for s in SAMPLING for o in ("dpo", "ipo", "grpo") if (s, o) != ("previous", "grpo")],
)
def test_every_source_feeds_every_kind_of_objective(source, objective, run):
    done = run(source=source, objective=objective, **SAMPLING[source])
    assert done.status == "finished" and all(np.isfinite(m["loss"]) for m in done.metrics)


@pytest.mark.slow
@pytest.mark.parametrize("source", SAMPLING)
def test_a_run_through_a_source_repeats_and_resumes_to_the_byte(source, run, tmp_path):
    options = {"source": source, "objective": "ipo", "steps": 4, "save_steps": 2, **SAMPLING[source]}
    whole = run(**options, output=str(tmp_path / "whole"))
    part = tmp_path / "part"
    shutil.copytree(tmp_path / "whole", part)
    shutil.rmtree(part / "trueline" / "checkpoints" / "step-4")
    again = run(**options, output=str(part), resume=True)
    for file in ("model.safetensors", "trueline/metrics.jsonl", "trueline/stream.jsonl"):
        assert (again.folder / file).read_bytes() == (whole.folder / file).read_bytes(), file


@pytest.mark.slow
@pytest.mark.parametrize("source", SAMPLING)
def test_a_recorded_stream_of_a_source_replays_to_the_same_weights(source, run, tmp_path):
    options = {"objective": "ipo", "steps": 3}
    online = run(source=source, **options, **SAMPLING[source])
    limit = {"max_response_length": SAMPLING[source].get("max_response_length", 8)}
    file = str(online.folder / "trueline" / "stream.jsonl")
    replayed = run(source="replay", data=[file], feedback=["data"], output=str(tmp_path / "again"), **options, **limit)
    assert [m["loss"] for m in replayed.metrics] == [m["loss"] for m in online.metrics]
    assert (replayed.folder / "model.safetensors").read_bytes() == (online.folder / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_exploration_replays_from_its_stream(run, tmp_path):
    online = run(source="reference_pair", objective="xpo")
    file = str(online.folder / "trueline" / "stream.jsonl")
    replayed = run(source="replay", data=[file], feedback=["data"], objective="xpo", output=str(tmp_path / "again"))
    assert [m["loss"] for m in replayed.metrics] == [m["loss"] for m in online.metrics]


@pytest.mark.slow
def test_the_age_of_samples_is_in_metrics_and_stream_and_ratios_correct_for_it(run):
    done = run(source="async_policy", objective="grpo", samples=4, staleness=2, steps=4, learning_rate=3e-3)
    assert [m["staleness"] for m in done.metrics] == [0.0, 1.0, 2.0, 2.0]
    assert [row["responses"][0]["policy_step"] for row in stream(done)[::4]] == [0, 0, 0, 1]
    ratios = [m["ratio/mean"] for m in done.metrics]
    assert ratios[0] == pytest.approx(1.0, abs=1e-5) and abs(ratios[-1] - 1) > 1e-4


@pytest.mark.slow
def test_a_source_that_samples_the_reference_gets_one_where_the_objective_reads_none(run):
    done = run(source="reference_pair", objective="simpo")
    assert {r["source"] for row in stream(done) for r in row["responses"]} == {"policy", "reference"}


@pytest.mark.slow
def test_what_an_environment_says_is_in_the_response_and_out_of_the_loss(run, given):
    from transformers import AutoTokenizer

    law = {"samples": 8, "max_response_length": 60, "max_length": 128}
    done = run(source="rollout", objective="grpo", environment=f"{here.__name__}:weather", **law)
    tokenizer = AutoTokenizer.from_pretrained(given[0])
    heard = 0
    for row in stream(done):
        for r in row["responses"]:
            assert len(r["ids"]) == len(r["mask"]) == len(r["behaviour_logp"]) == len(r["full_logp"]) <= 60
            said = [i for i, counts in zip(r["ids"], r["mask"], strict=True) if not counts]
            if said:
                heard += 1
                assert "sun" in tokenizer.decode(said) and r["mask"][0]
                assert all(x == 0 for x, counts in zip(r["full_logp"], r["mask"], strict=True) if not counts)
                assert [m["role"] for m in r["messages"]][:2] == ["assistant", "user"]
            if r["finish"] == "stop" and said:
                assert r["mask"][-1] and len(r["messages"]) == 3
    assert heard


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "message"), [("broken", "no network"), ("useless", "returned 3"), ("gone", "no function")]
)
def test_an_environment_that_fails_names_itself(function, message, run):
    with pytest.raises(TruelineError, match=message):
        law = {"samples": 8, "max_response_length": 60, "max_length": 128}
        run(source="rollout", objective="grpo", environment=f"{here.__name__}:{function}", **law)


@pytest.mark.slow
def test_a_model_folder_rewrites_prompts_and_the_policy_trains_on_them(run, given):
    done = run(source="evolving", objective="ipo", creator=given[0], every=1, evolved=1.0, samples=3, steps=3)
    known = {json.dumps(g["prompt"]) for g in stream(done)[:4]}
    assert done.status == "finished"
    assert any(
        g["origin"].startswith("evolved from") and json.dumps(g["prompt"]) not in known for g in stream(done)[4:]
    )


@pytest.mark.slow
def test_the_recipe_of_raft_trains_on_the_best_of_its_samples(run):
    values = {**read_recipe("raft"), "samples": 4, "batch_size": 4, "minibatches": 2, "steps": 2}
    done = run(**values)
    assert done.status == "finished" and all(m["length/demonstrations"] > 0 for m in done.metrics)
