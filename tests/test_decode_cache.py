"""Decoding caches: after any sequence of forks, growth and rejections, what is read equals whole rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tiny import tiny_model
from trueline.decoding import DecodeEngine, Request, readers
from trueline.decoding.lines import Line, Prefixes, Root, Voice, read, read_logp, read_trail
from trueline.decoding.models import LanguageModel, Scorer
from trueline.decoding.readers import OwnCacheReader, Rereader, SharedReader
from trueline.decoding.request import Counters
from trueline.engine.policy import Policy

FAMILIES = ("llama", "qwen3", "gpt2", "gemma3_text", "mistral")  # the last two have windows of 8 tokens
VOICES: dict[tuple[str, str], Voice] = {}


def voice_of(family: str, way: str = "shared", head: str = "lm") -> Voice:
    """A float64 model of the family behind a given reader; made once."""
    key = (family, way, head)
    if key not in VOICES:
        policy = Policy(tiny_model(family, head=head, dtype=torch.float64), head=head)  # type: ignore[arg-type]
        reader = {"shared": SharedReader, "own": OwnCacheReader, "none": Rereader}[way](policy._backbone)
        model = LanguageModel(policy, reader) if head == "lm" else Scorer(policy, reader)
        VOICES[key] = Voice(family, model)
    return VOICES[key]


def plain_logits(voice: Voice, ids: list[int]) -> torch.Tensor:
    policy = voice.model.policy
    with torch.no_grad(), policy.plain_attention():
        return policy.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def gap(voice: Voice, line: Line) -> float:
    """Largest log-prob difference between what was read of the line and one plain call on the whole row."""
    expected = plain_logits(voice, [*line.root.prompt_ids, *line.new])[-1].log_softmax(-1)
    state = line.readings[voice].state
    return float((voice.model.logits(state[None])[0].log_softmax(-1) - expected).abs().max())


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["fork", "grow", "grow", "crop", "close", "read", "logp", "trail"]),
        st.integers(0, 99),
        st.integers(1, 6),
    ),
    min_size=4,
    max_size=14,
)


def walk(voice: Voice, prompts: list[list[int]], actions: list[tuple[str, int, int]], limit: float = 1e-9) -> None:
    """Do these things to lines of these prompts; every read is compared with plain calls, and nothing is left behind."""
    roots = [Root(prompt, Counters()) for prompt in prompts]
    lines = [Line(root, 40, (0, i)) for i, root in enumerate(roots)]
    first = list(lines)
    prefixes = Prefixes(64)
    for number, (action, which, amount) in enumerate(actions):
        line = lines[which % len(lines)]
        if action == "fork":
            lines += [line.fork((0, number, j)) for j in range(amount % 3 + 1)]
        elif action == "grow":
            for j in range(amount):
                line.append(3 + (which * 7 + number * 5 + j * 3) % 90, 0.0, 0.0)
        elif action == "all":  # rows that see more and less of one trunk in one call
            for i, candidate in enumerate(lines):
                candidate.append(3 + (number * 11 + i * 17) % 90, 0.0, 0.0)
        elif action == "crop":
            line.crop(max(0, len(line.new) - amount))
        elif action == "close" and len(lines) > len(first) and line not in first:
            line.close()
            lines.remove(line)
        elif action == "logp":
            some = [candidate for candidate in lines if candidate.new][:4]
            for candidate, logp in zip(some, read_logp(voice.model, voice, some), strict=True):
                whole = plain_logits(voice, [*candidate.root.prompt_ids, *candidate.new]).log_softmax(-1)
                rows = whole[len(candidate.root.prompt_ids) - 1 : -1]
                expected = rows.gather(1, torch.tensor(candidate.new)[:, None])[:, 0]
                assert torch.allclose(torch.tensor(logp, dtype=rows.dtype), expected, atol=limit)
        elif action == "trail":
            start = min(amount, len(line.new))
            (states,) = read_trail(voice.model, [(voice, line, start)])
            whole = plain_logits(voice, [*line.root.prompt_ids, *line.new])[len(line.root.prompt_ids) - 1 + start :]
            assert torch.allclose(voice.model.logits(states).log_softmax(-1), whole.log_softmax(-1), atol=limit)
        read(voice.model, [(voice, candidate) for candidate in lines[which % len(lines) :]], prefixes)
        assert max(gap(voice, candidate) for candidate in lines[which % len(lines) :]) < limit
    for line in lines:
        line.close()
    for root in roots:
        root.close()
    prefixes.clear()
    assert voice.model.reader.held() == 0


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(actions=ACTIONS)
def test_any_sequence_of_forks_growth_and_rejections_reads_what_whole_rows_give(family, actions):
    walk(voice_of(family), [[5, 9, 4, 33, 8, 21, 60, 7, 7, 12], [11, 3]], actions)


LONG = [
    ("grow", 0, 6), ("fork", 0, 2), ("grow", 2, 4), ("grow", 3, 1), ("read", 0, 1), ("crop", 2, 3), ("grow", 2, 6), ("fork", 2, 2),
    ("fork", 2, 1), ("grow", 4, 2), ("close", 3, 1), ("logp", 0, 1), ("grow", 1, 5), ("fork", 1, 2), ("crop", 0, 5), ("trail", 2, 2),
    ("grow", 0, 6), ("crop", 2, 6), ("fork", 4, 2), ("grow", 5, 6), ("logp", 0, 1),
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_sequence_on_shared_prefixes_reads_what_whole_rows_give(family):
    walk(voice_of(family), [[5, 9, 4, 33, 8, 21, 60, 7, 7, 12], [11, 3]], LONG)


FORKS = [
    ("grow", 0, 4), ("fork", 0, 1), ("grow", 2, 3), ("grow", 3, 2), ("fork", 2, 1), ("grow", 4, 1), ("grow", 5, 2), ("fork", 3, 1),
    ("grow", 6, 1), ("grow", 7, 2), ("grow", 4, 2), ("all", 0, 1), ("fork", 6, 2), ("all", 0, 1), ("crop", 4, 6), ("all", 0, 1),
]  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_forks_of_forks_do_not_overwrite_each_other_on_the_trunk_they_share(family):
    walk(voice_of(family), [[5, 9, 4, 33, 8], [11, 3]], FORKS)


@pytest.mark.parametrize(
    ("family", "way"), [("llama", "own"), ("gemma3_text", "own"), ("falcon_h1", "own"), ("llama", "none")]
)
def test_the_fallbacks_read_what_whole_rows_give(family, way):
    limit = 1e-6 if family == "falcon_h1" else 1e-9  # its recurrence is in fp32 whatever its weights are
    walk(voice_of(family, way), [[5, 9, 4, 33, 8, 21, 60, 7, 7, 12], [11, 3]], LONG, limit)


def test_what_several_lines_were_forked_with_is_read_once():
    voice = voice_of("llama")
    root = Root([5, 9, 4], Counters())
    line = Line(root, 40, (0,))
    for token in range(20, 30):
        line.append(token, 0.0, 0.0)
    forks = [line.fork((0, i)) for i in range(4)]
    for fork in forks:
        fork.append(40, 0.0, 0.0)
    read(voice.model, [(voice, fork) for fork in forks])
    assert root.counters.lm_tf == 3 + 10 + 4
    for one in (line, *forks):
        one.close()
    root.close()


def test_a_candidate_equal_to_the_padding_token_is_judged_at_its_own_place():
    policy = Policy(tiny_model("gpt2", head="scalar", pad_token_id=2, dtype=torch.float64), head="scalar")
    model = Scorer(policy, SharedReader(policy._backbone))
    voice = Voice("rm", model)
    root = Root([5, 9, 4], Counters())
    line = Line(root, 9, (0,), [8, 2, 2])  # the head of transformers would read the 8
    read(model, [(voice, line)])
    found = float(model.values(line.readings[voice].state[None])[0])
    with torch.no_grad(), policy.plain_attention():
        hidden = policy.model.transformer(torch.tensor([[5, 9, 4, 8, 2, 2]]), use_cache=False).last_hidden_state
        assert found == pytest.approx(float(policy.model.score(hidden)[0, -1]), abs=1e-9)
    line.close()
    root.close()


def test_a_cache_that_disagrees_is_announced_with_its_gap_and_not_used(monkeypatch, capsys):
    right = readers.SharedReader._call

    def wrong(self, ids, positions):
        return right(self, ids, positions + 1 if ids.shape[1] < 6 else positions)

    monkeypatch.setattr(readers.SharedReader, "_call", wrong)
    engine = DecodeEngine(Policy(tiny_model("llama", seed=41)))
    said = capsys.readouterr().err
    assert "decoding on shared prefixes is off by" in said and "its own cache will be read instead" in said
    assert isinstance(engine.policy.model.reader, OwnCacheReader)


def test_a_prompt_that_starts_like_an_earlier_one_is_read_from_there_on():
    engine = DecodeEngine(Policy(tiny_model("llama")), prefix_tokens=100)
    prompt = list(range(3, 43))
    plain = DecodeEngine(Policy(tiny_model("llama"))).run([Request([*prompt, 50], max_new_tokens=6)])[0][0]
    engine.run([Request(prompt, max_new_tokens=6)])
    again = engine.run([Request([*prompt, 50], max_new_tokens=6)])[0][0]
    assert again.ids == plain.ids
    assert plain.counters.lm_tf - again.counters.lm_tf == len(prompt)
    engine.prefixes.clear()
    assert engine.held() == {"policy": 0}
