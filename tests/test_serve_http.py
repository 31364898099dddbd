"""Serving, the HTTP side, over an engine that answers by rote: streams, limits, departures, failures, the drain."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import threading
import time

import openai
import pytest

from tests.serving_fakes import RoteEngine
from tests.serving_host import PATIENCE, host_of, serving, until
from tests.tokenizers_on_the_spot import byte_level
from trueline.serving.host import Limits
from trueline.serving.keys import Keys

TOKENIZER = byte_level()
EOS = TOKENIZER.eos_token_id
USER = [{"role": "user", "content": "hi"}]


def spell(text, *, ended=True):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"] + [EOS] * ended


def rote(text="Grüße 🙂 END and more", **settings):
    return RoteEngine(lambda request: spell(text), **settings)


@pytest.fixture(scope="module")
def server():
    with serving(host_of(rote(), TOKENIZER)) as served:
        yield served


def post(url, path, body, headers=None):
    """A raw POST: status, headers and the decoded body."""
    host = url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=PATIENCE)
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.request("POST", path, raw, {"Content-Type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.headers.items()}, json.loads(answer.read())
    finally:
        connection.close()


def get(url, path, headers=None):
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE)
    try:
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def is_error(body):
    return set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}


# -- answers -----------------------------------------------------------------------------------------------------------


def test_a_chat_answer_has_text_finish_and_usage(server):
    answer = server.client().chat.completions.create(model="tiny", messages=USER)
    assert answer.choices[0].message.content == "Grüße 🙂 END and more"
    assert answer.choices[0].finish_reason == "stop"
    said = len(spell("Grüße 🙂 END and more"))
    prompt = len(TOKENIZER.apply_chat_template(USER, add_generation_prompt=True, return_dict=False))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, said)
    assert answer.usage.total_tokens == prompt + said and answer.usage.reward_calls == 0
    assert answer.choices[0].alignment["method"] == "plain"


def test_a_stream_joins_to_the_whole_answer_and_ends_with_usage(server):
    chunks = list(
        server.client().chat.completions.create(
            model="tiny", messages=USER, stream=True, n=2, stream_options={"include_usage": True}
        )
    )
    texts, finish = ["", ""], [None, None]
    for chunk in chunks[:-1]:
        assert chunk.usage is None and len(chunk.choices) == 1
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        finish[choice.index] = choice.finish_reason
    assert texts == ["Grüße 🙂 END and more"] * 2 and finish == ["stop"] * 2
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 2 * len(spell("Grüße 🙂 END and more"))
    assert len({chunk.id for chunk in chunks}) == 1
    assert sum(bool(c.choices and c.choices[0].delta.content) for c in chunks) > 20  # token by token, not at the end


def test_no_chunk_holds_half_a_character(server):
    stream = server.client().completions.create(model="tiny", prompt="x", stream=True, max_tokens=64)
    pieces = [chunk.choices[0].text for chunk in stream]
    assert "".join(pieces) == "Grüße 🙂 END and more" and not any("\ufffd" in piece for piece in pieces)


def test_a_stop_string_over_several_tokens_is_never_sent(server):
    for stop in (" END", ["nowhere", "🙂 E"]):
        stream = server.client().completions.create(model="tiny", prompt="x", stream=True, stop=stop, max_tokens=64)
        chunks = list(stream)
        expected = "Grüße 🙂" if stop == " END" else "Grüße "
        assert "".join(chunk.choices[0].text for chunk in chunks) == expected
        whole = server.client().completions.create(model="tiny", prompt="x", stop=stop, max_tokens=64)
        assert whole.choices[0].text == expected and whole.choices[0].finish_reason == "stop"


def test_log_probs_name_every_token_with_its_bytes(server):
    answer = server.client().chat.completions.create(model="tiny", messages=USER, logprobs=True)
    content = answer.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in content).decode() == "Grüße 🙂 END and more"
    assert {token.logprob for token in content} == {-0.5}
    old = server.client().completions.create(model="tiny", prompt="x", logprobs=0, max_tokens=64).choices[0].logprobs
    assert len(old.tokens) == len(content) and old.text_offset[0] == 0


def test_a_limit_ends_an_answer_by_length(server):
    answer = server.client().completions.create(model="tiny", prompt="x", max_tokens=3)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 3


def test_many_prompts_answer_in_order_and_echo_repeats_them(server):
    answer = server.client().completions.create(model="tiny", prompt=["one ", "two "], n=2, echo=True, max_tokens=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text[:4] for choice in answer.choices] == ["one ", "one ", "two ", "two "]


def test_models_and_methods_are_listed(server):
    assert [model.id for model in server.client().models.list()] == ["tiny", "tiny@plain"]
    assert server.client().models.retrieve("tiny").id == "tiny"
    assert json.loads(get(server.url, "/v1/alignment/methods")[1])["data"][0]["method"] == "plain"


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/chat/completions", {"model": "other", "messages": USER}, 404, "model_not_found"),
        ("/v1/chat/completions", {"model": "tiny@nothing", "messages": USER}, 400, "unknown_method"),
        (
            "/v1/chat/completions",
            {"model": "tiny", "messages": USER, "alignment": {"method": "x"}},
            400,
            "unknown_method",
        ),
        ("/v1/chat/completions", {"model": "tiny", "messages": USER, "max_tokens": 9999}, 400, None),
        ("/v1/chat/completions", {"model": "tiny", "messages": USER, "n": 65}, 400, None),
        ("/v1/completions", {"model": "tiny", "prompt": "x " * 400}, 400, "context_length_exceeded"),
        ("/v1/completions", {"model": "tiny", "prompt": "x " * 100_000}, 400, "context_length_exceeded"),
        ("/v1/completions", {"model": "tiny", "prompt": [99999]}, 400, None),
        ("/v1/completions", {"model": "tiny", "prompt": ""}, 400, None),
        ("/v1/completions", {"model": "tiny", "prompt": "x", "best_of": 3}, 400, "unsupported_parameter"),
        ("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": "<|im_end|>"}]}, 400, None),
        ("/v1/score", {"prompt": "x", "responses": ["y"]}, 400, "no_reward"),
        ("/v1/nothing", {}, 404, "unknown_url"),
        ("/v1/models", {}, 405, "method_not_allowed"),
    ],
)
def test_every_refusal_is_an_error_object(server, path, body, status, code):
    got, _, answer = post(server.url, path, body)
    assert (got, answer["error"]["code"]) == (status, code), answer
    assert is_error(answer) and answer["error"]["type"] == "invalid_request_error"


def test_temperature_zero_with_truncation_is_refused_by_name(server):
    status, _, answer = post(
        server.url, "/v1/completions", {"model": "tiny", "prompt": "x", "temperature": 0, "top_p": 0.9}
    )
    assert status == 400 and answer["error"]["param"] == "temperature"


def test_bodies_of_ten_megabytes_get_their_error_read_to_the_end(server):
    big = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "x" * 10_000_000}]}).encode()
    for path in ("/v1/chat/completions", "/v1/score", "/v1/nothing"):
        status, _, answer = post(server.url, path, big)
        assert status == (404 if path == "/v1/nothing" else 413) and is_error(answer)
    with pytest.raises(openai.APIStatusError) as caught:
        server.client().chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * 10_000_000}])
    assert caught.value.status_code == 413


def test_a_body_without_length_is_cut_off_at_the_limit(server):
    def chunks():
        for _ in range(80):
            yield b"x" * 100_000

    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE)
    connection.request("POST", "/v1/completions", chunks(), {"Content-Type": "application/json"}, encode_chunked=True)
    assert connection.getresponse().status == 413


def test_a_page_of_another_origin_cannot_make_a_simple_request(server):
    status, _, answer = post(server.url, "/v1/completions", b"{}", {"Content-Type": "text/plain"})
    assert status == 415 and is_error(answer)
    status, _, answer = post(server.url, "/v1/completions", b"{}", {"Host": "evil.example"})
    assert status == 403 and is_error(answer)


def test_what_the_engine_refuses_is_the_clients_error():
    capabilities = {"refused": {"runs": True, "why": "", "options": {}}}
    with serving(host_of(rote(), TOKENIZER, capabilities=capabilities, method="refused")) as served:
        status, _, answer = post(served.url, "/v1/completions", {"model": "tiny", "prompt": "x"})
        assert status == 400 and answer["error"]["message"] == "this one is refused"
        assert served.service.scheduler.open_prompts == 0


def test_a_request_wider_than_the_server_is_refused():
    facts = {"runs": True, "why": "", "width": "k", "options": {"k": {"default": 4}}}
    host = host_of(rote(), TOKENIZER, capabilities={"plain": facts}, limits=Limits(rows=16))
    with serving(host) as served:

        def ask(**more):
            return post(served.url, "/v1/completions", {"model": "tiny", "prompt": "x", **more})[0]

        assert ask(n=4) == 200 and ask(n=5) == 400
        assert ask(alignment={"options": {"k": 16}}) == 200 and ask(alignment={"options": {"k": 17}}) == 400
        assert ask(model="tiny@plain:k=17") == 400 and ask(model="tiny@plain:16") == 200


def test_options_come_from_the_server_the_model_name_or_the_request():
    seen = []
    engine = RoteEngine(lambda request: seen.append((request.method, dict(request.options))) or spell("a"))
    facts = {"runs": True, "why": "", "options": {"k": {"default": 4}, "w": {"default": 1.0}}}
    host = host_of(engine, TOKENIZER, capabilities={"plain": facts, "args": facts}, method="args", options={"k": 2})
    with serving(host) as served:
        for more in (
            {},
            {"alignment": {"options": {"w": 3}}},
            {"alignment": {"method": "plain"}},
            {"model": "tiny@plain:k=5,w=0.5"},
        ):
            assert post(served.url, "/v1/completions", {"model": "tiny", "prompt": "x", **more})[0] == 200
        wrong = {"model": "tiny@plain:k=5", "alignment": {"method": "args"}}
        assert post(served.url, "/v1/completions", {"prompt": "x", **wrong})[0] == 400
        assert post(served.url, "/v1/completions", {"prompt": "x", "model": "tiny@plain:nope=5"})[0] == 400
    last = {json.dumps(item): item for item in seen}.values()  # a script is asked once a round
    assert list(last) == [("args", {"k": 2}), ("args", {"k": 2, "w": 3}), ("plain", {}), ("plain", {"k": 5, "w": 0.5})]


# -- keys --------------------------------------------------------------------------------------------------------------


def test_with_a_key_everything_but_health_and_the_page_needs_it():
    with serving(host_of(rote(), TOKENIZER), Keys(["right-key-1"])) as served:
        assert served.client(api_key="right-key-1").completions.create(model="tiny", prompt="x").choices
        for path in ("/v1/models", "/metrics", "/v1/alignment/methods"):
            status, body = get(served.url, path)
            assert status == 401 and is_error(json.loads(body))
        assert get(served.url, "/health")[0] == 200 and get(served.url, "/")[0] == 200
        with pytest.raises(openai.AuthenticationError):
            served.client(api_key="wrong-key-1").completions.create(model="tiny", prompt="x")


# -- load, departures, failures ----------------------------------------------------------------------------------------


def test_fifty_clients_at_once_each_get_their_own_answer():
    engine = RoteEngine(lambda request: [*request.prompt_ids, EOS])  # says what it was asked
    with serving(host_of(engine, TOKENIZER)) as served:

        async def ask(client, i):
            text = f"client {i} 🙂"
            if i % 2:
                answer = await client.completions.create(model="tiny", prompt=text, max_tokens=64)
                return answer.choices[0].text == text
            stream = await client.completions.create(model="tiny", prompt=text, max_tokens=64, stream=True)
            return "".join([chunk.choices[0].text async for chunk in stream]) == text

        async def everyone():
            async with served.async_client() as client:
                return await asyncio.gather(*(ask(client, i) for i in range(50)))

        assert all(asyncio.run(everyone()))
        assert served.service.scheduler.open_prompts == 0 and not engine.running


def test_beyond_the_limit_clients_are_told_when_to_come_back():
    engine = rote("x" * 200, pause=0.005)
    with serving(host_of(engine, TOKENIZER, limits=Limits(prompts=2))) as served:
        streams = [
            served.client().completions.create(model="tiny", prompt="x", stream=True, max_tokens=200) for _ in "ab"
        ]
        status, headers, answer = post(served.url, "/v1/completions", {"model": "tiny", "prompt": "x"})
        assert status == 429 and is_error(answer) and int(headers["retry-after"]) >= 1
        with pytest.raises(openai.RateLimitError):
            served.client().completions.create(model="tiny", prompt="x")
        for stream in streams:
            stream.close()
        until(lambda: served.service.scheduler.open_prompts == 0)
        assert post(served.url, "/v1/completions", {"model": "tiny", "prompt": "x"})[0] == 200


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_leaves_frees_its_work_at_once(streaming):
    engine = rote("x" * 240, pause=0.01)
    with serving(host_of(engine, TOKENIZER)) as served:
        body = {"model": "tiny", "prompt": "x", "stream": streaming, "max_tokens": 240}
        raw = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), PATIENCE) as connection:
            connection.sendall(head.encode() + raw)
            until(lambda: engine.running)
        until(lambda: engine.cancelled == [0], 1.0)
        assert not engine.running and served.service.scheduler.open_prompts == 0
        assert "trueline_disconnected_total 1.0" in get(served.url, "/metrics")[1].decode()


def test_a_slow_reader_holds_up_nobody_and_gets_everything():
    engine = rote("x" * 200)
    with serving(host_of(engine, TOKENIZER), send_buffer=4096) as served:
        slow = served.client().completions.create(model="tiny", prompt="x", stream=True, max_tokens=200, n=20)
        chunks = [next(slow)]
        until(lambda: served.service.scheduler.open_prompts == 0)  # the engine is done, however little was read
        assert "trueline_requests_total" not in [
            line.partition("{")[0]
            for line in get(served.url, "/metrics")[1].decode().splitlines()
            if "completions" in line
        ]  # the answer is still being sent
        assert served.client().completions.create(model="tiny", prompt="x").choices
        chunks += slow
    for choice in range(20):
        assert "".join(c.choices[0].text for c in chunks if c.choices[0].index == choice) == "x" * 200


def test_a_reader_that_stops_reading_is_dropped():
    engine = RoteEngine(lambda request: spell("word " * 40))
    limits = Limits(patience=0.3)
    with serving(host_of(engine, TOKENIZER, limits=limits), send_buffer=4096) as served:
        raw = json.dumps({"model": "tiny", "prompt": "x", "stream": True, "max_tokens": 200, "n": 40}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", int(served.url.rpartition(":")[2])))
        connection.sendall(head.encode() + raw)
        until(lambda: "trueline_disconnected_total 1.0" in get(served.url, "/metrics")[1].decode())
        connection.close()


def test_a_body_that_never_arrives_is_given_up():
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{"
    with (
        serving(host_of(rote(), TOKENIZER, limits=Limits(patience=0.2))) as served,
        socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), PATIENCE) as connection,
    ):
        connection.sendall(head)
        assert b"408" in connection.recv(200)


def test_a_round_that_fails_is_an_error_object_and_the_server_goes_on():
    engines = [rote("x" * 50, broken=True), rote("x" * 50, broken=True), rote("ab")]
    made = iter(engines)
    host = host_of(engines[0], TOKENIZER, make_engine=lambda: next(made))
    with serving(host) as served:
        status, _, answer = post(served.url, "/v1/completions", {"model": "tiny", "prompt": "x"})
        assert status == 500 and is_error(answer) and answer["error"]["type"] == "server_error"
        with pytest.raises(openai.APIError, match="engine failed"):
            list(served.client().completions.create(model="tiny", prompt="x", stream=True))
        assert served.client().completions.create(model="tiny", prompt="x").choices[0].text == "ab"
        assert get(served.url, "/health")[0] == 200
        assert engines[2].cancelled == []  # the numbers of a broken engine mean nothing to the next


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_cannot_be_made_again_is_an_unhealthy_server_and_nobody_hangs():
    engines = iter([rote("x" * 50, broken=True)])
    host = host_of(rote(), TOKENIZER, make_engine=lambda: next(engines))
    with serving(host) as served:
        for status in (500, 503):
            got, _, answer = post(served.url, "/v1/completions", {"model": "tiny", "prompt": "x"})
            assert got == status and is_error(answer)
        assert get(served.url, "/health")[0] == 503


def test_an_error_of_one_request_is_only_that_requests():
    class Partly(RoteEngine):
        def step(self):
            from trueline.errors import TruelineError

            events = super().step()
            for event in events:
                if event.finished is not None and len(self.opened) % 2:
                    event.finished.finish, event.finished.error = "error", TruelineError("the reward model raised")
            return events

    engine = Partly(lambda request: spell("ab"))
    with serving(host_of(engine, TOKENIZER)) as served:
        status, _, answer = post(served.url, "/v1/completions", {"model": "tiny", "prompt": "x"})
        assert status == 500 and answer["error"]["message"] == "the reward model raised"
        assert post(served.url, "/v1/completions", {"model": "tiny", "prompt": "x"})[0] == 200
        with pytest.raises(openai.APIError, match="reward model raised"):
            list(served.client().completions.create(model="tiny", prompt="x", stream=True))


def test_a_budget_is_kept_or_refused_as_asked():
    class Poor(RoteEngine):
        def step(self):
            events = super().step()
            for event in events:
                if event.finished is not None:
                    event.finished.finish = "budget"
            return events

    seen = []
    engine = Poor(lambda request: seen.append(request.budget) or spell("ab"))
    with serving(host_of(engine, TOKENIZER, limits=Limits(seconds=9.0))) as served:
        asked = {"model": "tiny", "prompt": "x", "alignment": {"budget": {"max_lm_tf": 7, "max_seconds": 99.0}}}
        status, _, answer = post(served.url, "/v1/completions", asked)
        assert status == 200 and answer["choices"][0]["finish_reason"] == "length"
        assert answer["choices"][0]["alignment"]["status"] == "budget"
        assert (seen[0].lm_tf, seen[0].seconds) == (7, 9.0)
        asked["alignment"]["on_budget"] = "error"
        assert post(served.url, "/v1/completions", asked)[2]["error"]["code"] == "budget_exceeded"


def test_an_idle_stream_is_kept_alive():
    engine = rote("ab", pause=0.3)
    with serving(host_of(engine, TOKENIZER, limits=Limits(keep_alive=0.05))) as served:
        connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=PATIENCE)
        body = json.dumps({"model": "tiny", "prompt": "x", "stream": True})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        lines = connection.getresponse().read().split(b"\n")
        assert b": still at work" in lines and b"data: [DONE]" in lines


def test_what_cannot_be_written_as_json_is_null_and_line_separators_are_escaped():
    from trueline.serving.http import encoded

    assert encoded({"a": float("nan"), "b": [-float("inf")], "c": "\u2028"}) == b'{"a":null,"b":[null],"c":"\\u2028"}'


# -- the drain ---------------------------------------------------------------------------------------------------------


def drain(limits, text="x" * 60):
    """A stream that is open when the server is told to end: its text and error, and what a newcomer gets."""
    engine = rote(text, pause=0.01)
    host = host_of(engine, TOKENIZER, limits=limits)
    found = {}

    def read(served):
        try:
            stream = served.client().completions.create(model="tiny", prompt="x", stream=True, max_tokens=240)
            found["text"] = "".join(chunk.choices[0].text for chunk in stream)
        except openai.APIError as error:
            found["error"] = error

    with serving(host) as served:
        reader = threading.Thread(target=read, args=(served,))
        reader.start()
        until(lambda: engine.running)
        time.sleep(0.05)
    try:
        served.client().completions.create(model="tiny", prompt="x")
    except openai.APIConnectionError:
        found["newcomer"] = "refused"
    reader.join(PATIENCE)
    return found


def test_a_server_that_ends_lets_open_answers_finish():
    assert drain(Limits()) == {"text": "x" * 60, "newcomer": "refused"}


def test_what_is_open_after_the_drain_gets_an_error_object():
    found = drain(Limits(drain=0.2), "x" * 239)
    assert "shutting down" in str(found["error"]) and "text" not in found


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_metrics_count_requests_tokens_and_costs():
    with serving(host_of(rote("ab"), TOKENIZER)) as served:
        for _ in range(3):
            served.client().completions.create(model="tiny", prompt="xyz")
        post(served.url, "/v1/completions", {})
        get(served.url, "/nowhere/else")
        text = get(served.url, "/metrics")[1].decode()
    prompt = len(TOKENIZER("xyz", add_special_tokens=False)["input_ids"])
    for line in (
        'trueline_requests_total{endpoint="/v1/completions",status="200"} 3.0',
        'trueline_requests_total{endpoint="/v1/completions",status="400"} 1.0',
        'trueline_requests_total{endpoint="other",status="404"} 1.0',
        f"trueline_prompt_tokens_total {3.0 * prompt}",
        'trueline_new_tokens_total{method="plain"} 9.0',
        f'trueline_cost_total{{kind="lm_tf",method="plain"}} {3.0 * (prompt + 3)}',
        "trueline_jobs 0.0",
    ):
        assert line in text, line


def test_a_client_cannot_make_new_series_by_composing_methods():
    hooks = {"plain": "loop", "args": "loop", "dera": "mix", "kgw": "mark"}
    capabilities = {name: {"runs": True, "why": "", "options": {}, "hook": hook} for name, hook in hooks.items()}
    with serving(host_of(rote("ab"), TOKENIZER, capabilities=capabilities)) as served:
        for method in ("dera+args", "args+dera", "kgw+dera+args", "kgw+dera", "dera"):
            body = {"model": "tiny", "prompt": "x", "alignment": {"method": method}}
            assert post(served.url, "/v1/completions", body)[0] == 200
        text = get(served.url, "/metrics")[1].decode()
    assert set(re.findall(r'new_tokens_total{method="(.*?)"}', text)) == {"args", "plain"}
