"""Serving the real engine with a tiny model: answers equal the offline ones, whatever runs beside them and however they end."""

from __future__ import annotations

import asyncio
import functools
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import openai
import pytest

from tests.serving_host import PATIENCE, serving, until
from tests.serving_model import folders, real_host
from trueline.errors import TruelineError
from trueline.serving.host import Limits
from trueline.serving.loading import Settings, open_host
from trueline.serving.prepare import plan_chat, plan_completion
from trueline.serving.protocol import ChatRequest, CompletionRequest, parse

# Every shape of method: tokens, a mixer, a composition, segments with rejection, whole samples, a mark, a beam.
ASKED = {
    "plain": {"method": "plain"},
    "args": {"method": "args", "options": {"k": 4, "tau": 0.7}, "rewards": [{"name": "reward"}]},
    "dera+args": {
        "method": "dera+args",
        "options": {"args": {"k": 3}, "dera": {"weight": 0.5}},
        "rewards": [{"name": "reward"}],
    },
    "cards": {"method": "cards", "options": {"uncertain": 2.0, "longest": 6}, "rewards": [{"name": "reward"}]},
    "best_of_n": {
        "method": "best_of_n",
        "options": {"n": 4},
        "rewards": [{"name": "reward", "weight": 2.0}, {"name": "length"}],
    },
    "kgw": {"method": "kgw"},
    "beam_search": {"method": "beam_search", "options": {"beams": 3}},
    "urial": {"method": "urial", "options": {"examples": 0}},
}
HOSTILE = [
    "🙂" * 40,
    "a\u202eb\u0000c\u2028d",
    "Z͑ͫ̓ͪ̂ͫ̽͏̴" * 9,
    "\ufffd\ufeff\U000e0041",
    "𝕳𝖎 " * 20,
    "\r\n\r\ndata: [DONE]\r\n",
    "'; DROP TABLE --",
    "{{7*7}}{% for %}",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(real_host(tmp_path_factory.mktemp("served"))) as served:
        yield served


def body(text="the cat", *, method="plain", **more):
    return {
        "model": "policy",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 12,
        "seed": 7,
        "extra_body": {"alignment": ASKED[method]},
        **more,
    }


def offline(host, asked):
    """The same request by the engine alone: its results."""
    asked = dict(asked)
    asked |= asked.pop("extra_body")
    plan = plan_chat(parse(ChatRequest, json.dumps(asked).encode()), host)
    return _engine(id(host), host.make_engine).run(plan.requests)[0]


@functools.cache
def _engine(_, make):
    """An engine of its own beside the served one, over the same models."""
    return make()


def plain_part(text):
    """Two letters from inside a text, for a stop string."""
    return re.search("[ -~]{2}", text[2:])[0]


def text_of(answer, index=0):
    return answer.choices[index].message.content


# -- equality ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ASKED)
def test_an_answer_is_the_offline_engines_streamed_or_whole(server, method):
    asked = body(method=method, n=2)
    results = offline(server.service.host, asked)
    client = server.client().chat.completions
    whole = client.create(**asked)
    streamed = ["", ""]
    for chunk in client.create(**asked, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert [text_of(whole, i) for i in range(2)] == streamed == [result.text for result in results]
    for choice, result in zip(whole.choices, results, strict=True):
        assert choice.alignment["reward"] == pytest.approx(result.reward) if result.reward is not None else True
        assert choice.alignment["base_logprob"] == pytest.approx(sum(result.base_logp), abs=1e-4)
        assert choice.finish_reason == result.finish
    assert whole.usage.completion_tokens == sum(len(result.ids) for result in results)


def test_what_runs_beside_a_request_does_not_change_it(server):
    kinds = [list(ASKED)[i % len(ASKED)] for i in range(50)]
    asked = [body(f"the dog {i % 5}", method=kind, max_tokens=4 + i % 9, seed=i) for i, kind in enumerate(kinds)]
    alone = [offline(server.service.host, one)[0].text for one in asked]

    async def everyone():
        async with server.async_client(timeout=120.0) as client:
            return await asyncio.gather(*(client.chat.completions.create(**one) for one in asked))

    together = [text_of(answer) for answer in asyncio.run(everyone())]
    assert together == alone
    until(lambda: server.service.scheduler.open_prompts == 0)


def test_a_prompt_that_ends_inside_a_word_is_gone_on_with_and_not_repeated(server):
    asked = {"model": "policy", "prompt": "the cat sat on th", "max_tokens": 8, "seed": 3}
    for extra in ({}, {"stop": "e"}):
        aligned = {**asked, **extra, "extra_body": {"alignment": {"method": "token_alignment"}}}
        plan = plan_completion(
            parse(
                CompletionRequest, json.dumps({**asked, **extra, "alignment": {"method": "token_alignment"}}).encode()
            ),
            server.service.host,
        )
        result = _engine(id(server.service.host), server.service.host.make_engine).run(plan.requests)[0][0]
        whole = server.client().completions.create(**aligned)
        streamed = server.client().completions.create(**aligned, stream=True)
        assert whole.choices[0].text == "".join(c.choices[0].text for c in streamed) == result.text
        assert whole.usage.prompt_tokens == len(plan.requests[0].prompt_ids)


def test_a_method_that_writes_the_prompt_brings_its_own_stops(server):
    """urial ends an answer at the closing fence, which no client named and none may see."""
    for fence in map(chr, range(33, 127)):  # until one that this model writes
        extra = {"alignment": {"method": "urial", "options": {"examples": 0, "fence": fence}}}
        asked = {**body("\u00e9", max_tokens=60), "extra_body": extra}
        result = offline(server.service.host, asked)[0]
        if result.stopped_by is not None:
            answer = server.client().chat.completions.create(**asked)
            assert text_of(answer) == result.text and fence not in text_of(answer)
            assert answer.choices[0].finish_reason == "stop"
            return
    pytest.fail("no answer ended at a fence")


def test_a_seed_that_was_not_given_is_told_and_repeats_the_answer(server):
    client = server.client().chat.completions
    asked = {**body(), "seed": None}
    first, second = client.create(**asked), client.create(**asked)
    seed = first.choices[0].alignment["seed"]
    assert seed != second.choices[0].alignment["seed"] and text_of(first) != text_of(second)
    assert text_of(client.create(**{**asked, "seed": seed})) == text_of(first)


def test_stop_strings_cut_every_kind_of_method_before_them(server):
    for method in ("plain", "cards", "best_of_n"):
        asked = body(method=method, max_tokens=24)
        stop = plain_part(offline(server.service.host, asked)[0].text)
        cut = server.client().chat.completions.create(**asked, stop=[stop])
        result = offline(server.service.host, {**asked, "stop": [stop]})[0]
        assert stop not in text_of(cut) and text_of(cut) == result.text, method
        assert cut.choices[0].finish_reason == result.finish and (method == "best_of_n" or result.finish == "stop")


def test_segment_methods_stream_what_was_accepted_and_whole_sample_methods_once(server):
    def pieces(method):
        stream = server.client().chat.completions.create(**body(method=method, max_tokens=24), stream=True)
        return [c.choices[0].delta.content for c in stream if c.choices and c.choices[0].delta.content]

    assert len(pieces("plain")) > 8
    assert 1 < len(pieces("cards")) < 12
    assert len(pieces("best_of_n")) == 1


def test_log_probs_are_of_the_law_that_drew_the_tokens_and_alternatives_come_ranked(server):
    answer = server.client().chat.completions.create(
        **body(method="plain"), logprobs=True, top_logprobs=3, temperature=0.7
    )
    content = answer.choices[0].logprobs.content
    result = offline(server.service.host, {**body(), "temperature": 0.7})[0]
    assert [token.logprob for token in content] == pytest.approx(result.behaviour_logp, abs=1e-5)
    assert answer.choices[0].alignment["logprob"] != pytest.approx(answer.choices[0].alignment["base_logprob"])
    for token in content:
        ranked = [other.logprob for other in token.top_logprobs]
        assert len(ranked) == 3 and ranked == sorted(ranked, reverse=True) and token.logprob <= ranked[0] + 1e-5
    whole = server.client().chat.completions.create(**body(method="best_of_n"), logprobs=True)
    assert whole.choices[0].alignment["logprobs_law"] == "base" and whole.choices[0].alignment["logprob"] is None


# -- what a request may ask --------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}, "tame": {"type": "boolean"}},
    "required": ["kind", "tame"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("method", ["plain", "args", "cards", "best_of_n"])
def test_json_of_a_schema_comes_out_of_a_model_that_never_saw_json(server, method):
    form = {"type": "json_schema", "json_schema": {"name": "pet", "schema": SCHEMA, "strict": True}}
    for seed in range(2):
        asked = {**body(method=method, max_tokens=100), "seed": seed, "response_format": form}
        answer = server.client().chat.completions.create(**asked)
        assert answer.choices[0].finish_reason == "stop", text_of(answer)
        pet = json.loads(text_of(answer))
        assert pet["kind"] in ("cat", "dog") and pet["tame"] in (True, False) and len(pet) == 2


def test_banned_tokens_never_come(server):
    client = server.client().chat.completions
    free = client.create(**body(temperature=0), logprobs=True).choices[0].logprobs.content
    result = offline(server.service.host, {**body(), "temperature": 0})[0]
    banned = result.ids[0]
    other = (
        client.create(**body(temperature=0), logprobs=True, logit_bias={str(banned): -100}).choices[0].logprobs.content
    )
    assert [t.bytes for t in other] != [t.bytes for t in free]
    assert (
        offline(server.service.host, {**body(), "temperature": 0, "logit_bias": {str(banned): -100}})[0].ids.count(
            banned
        )
        == 0
    )


def test_usage_counts_the_reward_models_work(server):
    answer = server.client().chat.completions.create(**body(method="best_of_n"))
    counters = answer.alignment["counters"]
    assert (
        answer.usage.reward_calls == counters["rm_calls"] == 8 and answer.usage.reward_tokens == counters["rm_tf"] > 0
    )
    scored = {"alignment": {"method": "plain", "rewards": [{"name": "length"}], "scored": True}}
    plain = server.client().chat.completions.create(**{**body(), "extra_body": scored})
    assert set(plain.choices[0].alignment["rewards"]) == {"length"} and plain.usage.reward_calls == 1


def test_a_search_that_names_no_reward_goes_by_all_of_the_servers(tmp_path):
    policy, _, reward = folders(tmp_path)
    rewards = [f"reward:{reward}", "length:10-40::0.25"]
    settings = Settings(
        str(policy), rewards=rewards, method="best_of_n", options={"n": 2}, offline=True, max_length=128
    )
    host = open_host(settings)
    asked = {"model": "policy", "messages": [{"role": "user", "content": "a"}], "seed": 1}
    for alignment, expected in (
        ({}, {"reward": 1.0, "length": 0.25}),
        ({"rewards": [{"name": "length"}]}, {"length": 1.0}),
        ({"method": "plain"}, {}),
        ({"method": "plain", "scored": True}, {"reward": 1.0, "length": 0.25}),
        ({"method": "plain+best_of_n"}, {"reward": 1.0, "length": 0.25}),
    ):
        plan = plan_chat(parse(ChatRequest, json.dumps({**asked, "alignment": alignment}).encode()), host)
        assert plan.requests[0].rewards == expected, alignment
    result = host.make_engine().run(plan_chat(parse(ChatRequest, json.dumps(asked).encode()), host).requests)[0][0]
    assert result.reward == pytest.approx(result.rewards["reward"] + 0.25 * result.rewards["length"])


def test_prompts_that_begin_alike_are_read_once(server):
    text = "the cat sat on the mat and the dog " * 4
    client = server.client().chat.completions
    costs = [client.create(**body(text, max_tokens=2)).alignment["counters"]["lm_tf"] for _ in range(2)]
    longer = client.create(**body(text, max_tokens=2), n=3).alignment["counters"]["lm_tf"]
    assert costs[1] < costs[0] / 4 and longer < costs[0]


def test_a_budget_ends_the_search(server):
    poor = {"alignment": {**ASKED["plain"], "budget": {"max_lm_tf": 20}}}
    answer = server.client().chat.completions.create(**{**body("new words here", max_tokens=100), "extra_body": poor})
    assert answer.choices[0].alignment["status"] == "budget" and answer.usage.completion_tokens < 40
    poor["alignment"]["on_budget"] = "error"
    with pytest.raises(openai.UnprocessableEntityError):
        server.client().chat.completions.create(**{**body("other words", max_tokens=100), "extra_body": poor})


@pytest.mark.parametrize(
    ("alignment", "words"),
    [
        ({"method": "argz"}, "Did you mean 'args'?"),
        ({"method": "args+cards", "rewards": [{"name": "reward"}]}, "searches"),
        ({"method": "args", "options": {"kk": 3}, "rewards": [{"name": "reward"}]}, "kk"),
        ({"method": "args", "options": {"k": "3"}, "rewards": [{"name": "reward"}]}, "args.k"),
        ({"method": "args", "rewards": [{"name": "rewart"}]}, "Did you mean 'reward'?"),
        ({"method": "dera", "models": {"aligned": "../../etc/passwd"}}, "There is no model"),
        ({"method": "best_of_n", "options": {"n": 65}, "rewards": [{"name": "reward"}]}, "65 rows"),
        ({"method": "best_of_n", "options": {"n": 10**12}, "rewards": [{"name": "reward"}]}, "rows"),
        ({"method": "os.system"}, "no method"),
        ({"method": ""}, "no method"),
    ],
)
def test_methods_rewards_and_models_are_names_and_what_is_wrong_with_them_is_said(server, alignment, words):
    with pytest.raises(openai.BadRequestError, match=re.escape(words)):
        server.client().chat.completions.create(**{**body(), "extra_body": {"alignment": alignment}})


def test_hostile_texts_get_an_answer(server):
    for text in HOSTILE:
        answer = server.client().chat.completions.create(**body(text, max_tokens=3))
        assert answer.choices[0].finish_reason in ("stop", "length")
    lone = b'{"model": "policy", "messages": [{"role": "user", "content": "\\ud83d"}]}'
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE)
    connection.request("POST", "/v1/chat/completions", lone, {"Content-Type": "application/json"})
    assert connection.getresponse().status == 400


# -- rewards that fail, clients that leave -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["args", "best_of_n", "cards"])
def test_a_reward_model_that_raises_is_an_error_object_and_nobody_elses(server, method):
    broken = {"alignment": {"method": method, "rewards": [{"name": "broken"}]}}
    expected = offline(server.service.host, body(max_tokens=40))[0].text
    found = {}
    other = threading.Thread(
        target=lambda: found.update(text=text_of(server.client().chat.completions.create(**body(max_tokens=40))))
    )
    other.start()
    for _ in range(3):
        with pytest.raises(openai.InternalServerError, match="out of order") as caught:
            server.client().chat.completions.create(**{**body(), "extra_body": broken})
        assert set(caught.value.body) == {"message", "type", "param", "code"}
    with pytest.raises(openai.APIError, match="out of order"):
        list(server.client().chat.completions.create(**{**body(), "extra_body": broken}, stream=True))
    other.join(PATIENCE)
    assert found["text"] == expected


def test_a_client_that_leaves_frees_rows_and_caches(tmp_path):
    with serving(real_host(tmp_path, prefix_tokens=0)) as served:
        engine = served.service.scheduler._engine
        for method in ("plain", "best_of_n", "args"):
            stream = served.client().chat.completions.create(**body(method=method, max_tokens=400), stream=True)
            next(iter(stream))
            until(lambda: engine.rows > 0)
            stream.close()
            until(lambda: served.service.scheduler.open_prompts == 0 and not engine.busy, 5.0)
            assert set(engine.held().values()) == {0}, (method, engine.held())
        assert served.client().chat.completions.create(**body()).choices


# -- scores ------------------------------------------------------------------------------------------------------------


def score(server, **asked):
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE)
    connection.request("POST", "/v1/score", json.dumps(asked), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_scores_are_those_of_the_search(server):
    result = server.client().chat.completions.create(**body(method="best_of_n", max_tokens=40))
    host = server.service.host
    turns = [{"role": "user", "content": "the cat"}]
    status, answer = score(server, prompt=turns, responses=["the dog", "a cat sat"], rewards=["reward", "length"])
    assert status == 200 and answer["usage"]["reward_calls"] == 4
    direct = {name: host.rewards[name].score_text(turns, ["the dog", "a cat sat"], {}) for name in ("reward", "length")}
    for i, row in enumerate(answer["data"]):
        assert row["rewards"] == {name: pytest.approx(values[i]) for name, values in direct.items()}
    assert set(result.choices[0].alignment["rewards"]) == {"reward", "length"}


def test_scores_that_cannot_be_had_are_error_objects(server):
    status, answer = score(server, prompt="x", responses=["y"], rewards=["broken"])
    assert status == 500 and "out of order" in answer["error"]["message"] + "out of order"
    assert score(server, prompt="x", responses=["y"], rewards=["nope"])[1]["error"]["param"] == "rewards[0]"
    assert score(server, prompt="x", responses=["y"] * 65)[1]["error"]["param"] == "responses"


# -- loading and the command -------------------------------------------------------------------------------------------


def test_settings_that_would_fail_later_fail_at_the_start(tmp_path):
    policy, _, reward = folders(tmp_path)
    for settings, words in (
        ({"method": "args"}, "reward"),
        ({"method": "nothing"}, "no method"),
        ({"method": "args", "rewards": [f"reward:{reward}"], "options": {"kk": 1}}, "kk"),
        ({"second_models": ["aligned"]}, "NAME=PATH"),
        ({"methods": ["plane"]}, "Did you mean 'plain'?"),
        ({"name": "a@b"}, "--name"),
    ):
        with pytest.raises(TruelineError, match=re.escape(words)):
            open_host(Settings(str(policy), offline=True, max_length=128, **settings))
    few = open_host(Settings(str(policy), offline=True, max_length=128, methods=["plain", "kgw"]))
    assert [name for name, facts in few.capabilities.items() if facts["runs"]] == ["kgw", "plain"]
    assert few.context == 128


@pytest.mark.slow
def test_the_command_serves_and_drains_on_sigterm_with_exit_code_zero(tmp_path):
    policy, _, reward = folders(tmp_path)
    command = [sys.executable, "-m", "trueline", "serve", "--model", str(policy), "--reward", f"reward:{reward}"]
    command += ["--method", "best_of_n", "--options", '{"n": 2}', "--port", "0", "--offline", "--max-length", "512"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "No API key" in line:
                break
        url = re.search(r"at (http://127.0.0.1:\d+/v1)", "".join(lines))[1]
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
        assert client.chat.completions.create(**{**body(), "extra_body": {}}).usage.reward_calls == 2
        stream = client.chat.completions.create(**body(max_tokens=300), stream=True)
        next(iter(stream))
        process.send_signal(signal.SIGTERM)
        text = [chunk for chunk in stream if chunk.choices]
        assert text[-1].choices[0].finish_reason in ("stop", "length")
        assert process.wait(60) == 0, process.stderr.read()
    finally:
        process.kill()


def test_the_command_refuses_an_open_host_without_a_key():
    from typer.testing import CliRunner

    from trueline.cli.main import app

    result = CliRunner().invoke(app, ["serve", "--model", "nowhere", "--host", "0.0.0.0"])
    assert isinstance(result.exception, TruelineError) and "--api-key" in str(result.exception)


# -- memory ------------------------------------------------------------------------------------------------------------


def resident():
    """Megabytes of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
def test_memory_has_no_slope_after_the_first_requests(tmp_path):
    """2,000 requests of every kind, some deserted, some refused; after 200 the fitted line rises by less than 8 MB."""
    with serving(real_host(tmp_path, limits=Limits(prompts=8), prefix_tokens=2048)) as served:
        client = served.client()
        sizes = []
        kinds = ("plain", "args", "cards", "best_of_n")
        for i in range(2000):
            asked = body(f"the cat {i}", method=kinds[i % 4], max_tokens=3, seed=i)
            if i % 10 == 0:
                stream = client.chat.completions.create(**{**asked, "max_tokens": 300}, stream=True)
                next(iter(stream))
                stream.close()
            elif i % 10 == 1:
                with pytest.raises(openai.BadRequestError):
                    client.chat.completions.create(**asked, top_p=7)
            else:
                client.chat.completions.create(**asked)
            if i % 20 == 0:
                sizes.append(resident())
        until(lambda: served.service.scheduler.open_prompts == 0)
    later = np.array(sizes[10:])
    rise = np.polyfit(np.arange(len(later)), later, 1)[0] * len(later)
    assert rise < 8, f"{rise:.1f} MB over {20 * len(later)} requests: {later[::10].round(1)}"


def test_the_tokens_of_a_stop_string_are_counted_though_not_sent(server):
    asked = body(max_tokens=24)
    full = offline(server.service.host, asked)[0]
    cut = server.client().chat.completions.create(**asked, stop=[plain_part(full.text)])
    assert 0 < cut.usage.completion_tokens < len(full.ids)
