"""The server: what OpenAI's client gets, what is refused and how, and that nobody can block the others."""

import http.client
import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from dataset.text.conversation import Turn
from engine.checkpoints.load import load_checkpoint
from engine.generate.batch import Batch
from engine.generate.options import DecodeOptions, OpenOptions, ReplyOptions, SamplingOptions, ServeOptions
from engine.generate.reply import reply
from engine.serve.app import Service, text_service
from engine.serve.start import serve_checkpoint
from tests.chat_runs import served
from tests.tiny import ROOT, end, first_line, start

QUESTION = [{"role": "user", "content": "My name is Ada and I have 3 cats."}]


def ask(port, body, path="/v1/chat/completions", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, content, {"Content-Type": "application/json"} | headers)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def client(port):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)


def test_openais_client_gets_answers_whole_and_streamed(started):
    port = started()
    api = client(port)
    (model,) = api.models.list().data
    assert model.id == "ada"
    asked = {"model": "ada", "messages": QUESTION, "temperature": 0, "max_tokens": 10}
    whole = api.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    (choice,) = whole.choices
    assert choice.finish_reason in ("stop", "length") and choice.message.role == "assistant"
    tokens = choice.logprobs.content
    assert whole.usage.completion_tokens == len(tokens) <= 10
    assert all(len(token.top_logprobs) == 3 and token.depth == 3 for token in tokens)
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == choice.message.content

    pieces = list(api.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == choice.message.content and pieces[-1].usage == whole.usage
    assert pieces[-2].choices[0].finish_reason == choice.finish_reason


def test_the_conversation_and_the_seed_decide_the_answer(started):
    port = started()
    varied = {"messages": QUESTION, "temperature": 2.0, "max_tokens": 12}
    first, again, other = (ask(port, varied | {"seed": seed})[1] for seed in (1, 1, 2))
    said = [answer["choices"][0]["message"]["content"] for answer in (first, again, other)]
    assert said[0] == said[1] != said[2]
    longer = [*QUESTION, {"role": "assistant", "content": "Hello Ada!"}, {"role": "user", "content": "How many cats?"}]
    _, answer = ask(port, {"messages": [{"role": "system", "content": "short"}, *longer]})
    assert answer["usage"]["prompt_tokens"] > first["usage"]["prompt_tokens"] + 10
    _, shallow = ask(port, {"messages": QUESTION, "depth": 1, "logprobs": True})
    assert {token["depth"] for token in shallow["choices"][0]["logprobs"]["content"]} == {1}


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"{", 400, "Invalid JSON"),
        ({}, 400, "messages"),
        ({"messages": []}, 400, "messages"),
        ({"messages": QUESTION, "n": 2}, 400, "n: "),
        ({"messages": QUESTION, "tools": []}, 400, "tools"),
        ({"messages": QUESTION, "frequency_penalty": 1}, 400, "frequency_penalty"),
        ({"messages": QUESTION, "temperature": -1}, 400, "temperature"),
        ({"messages": QUESTION, "model": "gpt-9"}, 404, "'gpt-9'"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "last message"),
        ({"messages": [{"role": "user", "content": "word " * 300}]}, 400, "window of 96"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "empty"),
        ({"messages": QUESTION, "stop": ["x"] * 17}, 400, "stop: "),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_answered_is_refused_in_words(started, body, status, told, stream):
    port = started()
    found, answer = ask(port, body | {"stream": stream} if isinstance(body, dict) else body)
    assert found == status and told in answer["error"]["message"]


def test_requests_are_bounded(started):
    port = started(body_bytes=1000)
    assert ask(port, {"messages": QUESTION, "user": "x" * 2000})[0] == 413
    assert ask(port, {"messages": QUESTION}, **{"Content-Type": "text/plain"})[0] == 415
    assert ask(port, {"messages": QUESTION}, path="/v1/other")[0] == 404
    assert ask(port, {"messages": QUESTION}, Host="evil.example")[0] == 421
    assert ask(port, {"messages": QUESTION}, Host=f"localhost:{port}")[0] == 200


def get(port, path, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_with_an_api_key_only_those_who_have_it_are_answered(started):
    port = started(api_key="sésame")
    right = {"Authorization": "Bearer sésame".encode()}
    for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "sésame".encode()}):
        assert ask(port, {"messages": QUESTION}, **headers)[0] == 401
        assert get(port, "/v1/models", **headers)[0] == get(port, "/metrics", **headers)[0] == 401
    assert ask(port, {"messages": QUESTION, "max_tokens": 1}, **right)[0] == 200
    assert get(port, "/")[0] == get(port, "/health")[0] == 200


def test_what_was_done_is_counted(started):
    port = started()
    ask(port, {"messages": QUESTION, "max_tokens": 5, "temperature": 2.0, "seed": 1})
    ask(port, {"messages": []})
    get(port, "/unheard-of")
    status, text = get(port, "/metrics")
    counts = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert status == 200 and counts['trm_requests_total{path="/v1/chat/completions",outcome="200"}'] == "1"
    assert counts['trm_requests_total{path="/v1/chat/completions",outcome="400"}'] == "1"
    assert counts['trm_requests_total{path="other",outcome="404"}'] == "1"
    tokens = int(counts["trm_generated_tokens_total"])
    assert 1 < tokens <= 5 and counts["trm_first_token_seconds_count"] == "1"
    assert counts["trm_token_seconds_count"] == counts['trm_token_seconds_bucket{le="+Inf"}'] == str(tokens - 1)
    assert counts["trm_requests_waiting"] == counts["trm_answers_running"] == "0"


def test_more_than_may_wait_are_told_to_come_again(started, slow_tokens):
    port = started(answers_at_once=1, max_waiting=1)
    running = posted(port, stream=True)
    assert running.recv(12) == b"HTTP/1.1 200"
    waiting = posted(port, stream=True)
    time.sleep(0.2)
    status, answer = ask(port, {"messages": QUESTION, "max_tokens": 1})
    assert status == 503 and "1 requests" in answer["error"]["message"]
    assert posted(port).recv(4096).lower().count(b"retry-after: 1") == 1
    running.close()
    assert waiting.recv(12) == b"HTTP/1.1 200"
    waiting.close()
    assert ask(port, {"messages": QUESTION, "max_tokens": 1})[0] == 200


def test_a_client_that_never_reads_or_never_ends_its_request_blocks_nobody(started):
    port = started(client_seconds=1.0)
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
    idle[0].sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
    idle[0].sendall(b"Content-Length: 100\r\n\r\n{")
    started_at = time.monotonic()
    assert ask(port, {"messages": QUESTION})[0] == 200
    assert time.monotonic() - started_at < 10
    idle[0].settimeout(10)
    with suppress(ConnectionResetError):
        assert idle[0].recv(10) == b""  # thrown out after its second of silence
    for connection in idle:
        connection.close()


@pytest.fixture
def slow_tokens(monkeypatch):
    """Every token takes a moment; how many there were is counted."""
    honest, said = Batch.choose, []

    def slow(batch, *given):
        tokens = honest(batch, *given)
        said.extend(tokens)
        time.sleep(0.02)
        return tokens

    monkeypatch.setattr(Batch, "choose", slow)
    return said


def posted(port, **changes):
    """A connection over which a long answer was asked for."""
    asked = {"messages": QUESTION, "max_tokens": 60, "temperature": 9, "seed": 1} | changes
    body = json.dumps(asked).encode()
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    connection.sendall(head.encode() + b"\r\n\r\n" + body)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_somebody_who_goes_away_is_answered_no_longer(started, slow_tokens, stream):
    port = started(answers_at_once=1)
    posted(port, stream=stream).close()
    assert ask(port, {"messages": QUESTION, "max_tokens": 1})[0] == 200, "answered when the one before has left"
    assert len(slow_tokens) < 20


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_only_ends_its_own_side_gets_its_answer(started, slow_tokens, stream):
    connection = posted(started(), stream=stream, max_tokens=6)
    connection.shutdown(socket.SHUT_WR)
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    content = answer.read()
    assert answer.status == 200 and len(slow_tokens) == 6
    assert content.endswith(b"data: [DONE]\n\n") if stream else json.loads(content)["usage"]["completion_tokens"] == 6


def test_a_request_may_not_go_deeper_than_the_model_was_trained(started):
    port = started()
    status, answer = ask(port, {"messages": QUESTION, "depth": 4})
    assert status == 400 and "at most 3" in answer["error"]["message"] and answer["error"]["param"] == "depth"
    assert ask(port, {"messages": QUESTION, "depth": 3})[0] == 200


def test_a_request_may_leave_the_depth_to_the_calibrated_rule(started, loaded):
    port, file = started(), loaded.path / "exit.json"
    request = {"messages": QUESTION, "depth": "auto", "logprobs": True}
    status, answer = ask(port, request)
    assert status == 400 and "calibrate_exit.py" in answer["error"]["message"]
    file.write_text(json.dumps({"steps": 3, "margin": {"threshold": 0.0, "mean_depth": 1.0}}))
    try:
        status, answer = ask(port, request)
    finally:
        file.unlink()
    assert status == 200
    assert {token["depth"] for token in answer["choices"][0]["logprobs"]["content"]} == {1}
    status, answer = ask(port, {"messages": QUESTION, "depth": "deep"})
    assert status == 400 and "depth" in answer["error"]["param"]


def test_many_answers_at_once_are_those_that_each_alone_would_be(started, loaded):
    port = started()

    def answers(seeds):
        asked = {"messages": QUESTION, "temperature": 2.0, "max_tokens": 12}
        return [ask(port, asked | {"seed": seed})[1]["choices"][0]["message"]["content"] for seed in seeds]

    alone = answers(range(12))
    with ThreadPoolExecutor(4) as pool:
        together = [text for found in pool.map(answers, ([n, n + 4, n + 8] for n in range(4))) for text in found]
    assert sorted(together) == sorted(alone)


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_the_texts_are_those_of_the_command_line(started, loaded, temperature):
    port = started()
    questions = [
        f"My name is {name} and I have {number} cats." for name in ("Ada", "Bo", "Cy") for number in range(2, 9)
    ]
    options = ReplyOptions(decode=DecodeOptions(SamplingOptions(temperature=temperature, seed=3)), max_tokens=12)
    expected = [reply(loaded, [[Turn("user", text)]], options)[0].text for text in questions]

    def answer(text):
        asked = {"messages": [{"role": "user", "content": text}], "temperature": temperature, "seed": 3}
        return ask(port, asked)[1]["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(answer, questions)) == expected


def test_an_answer_that_is_being_given_when_the_server_stops_ends_with_a_word(loaded, slow_tokens):
    service = Service(loaded, ReplyOptions())
    with served(service.app, service.stop) as (server, port):
        whole, streamed = (posted(port, stream=stream) for stream in (False, True))
        assert streamed.recv(12) == b"HTTP/1.1 200"
        server.should_exit = True
        assert whole.recv(12) == b"HTTP/1.1 503"
        with suppress(ConnectionResetError):
            while piece := streamed.recv(4096):
                assert b"[DONE]" not in piece


def test_ctrl_c_during_an_answer_ends_the_server_and_says_so(loaded):
    process = start(["--checkpoint", str(loaded.path), "--port", "0", "--depth", "2000"], ROOT, door="serve.py")
    port = int(first_line(process).rsplit(":", 1)[1])
    streamed = posted(port, stream=True, max_tokens=90)
    assert streamed.recv(12) == b"HTTP/1.1 200"
    process.send_signal(signal.SIGINT)
    ended = end(process, 60)
    assert ended.code == 130 and "stopped" in ended.err and "Traceback" not in ended.err and ended.out == ""


@pytest.mark.parametrize(
    "address", [("127.0.0.1", -1), ("127.0.0.1", 10**9), ("999.1.1.1", 0), ("a\0b", 0), ("\ud800", 0)]
)
def test_an_address_that_cannot_be_had_is_told(loaded, address):
    opening = OpenOptions(str(loaded.path), device="cpu")
    with pytest.raises(ValueError, match="--host.*--port"):
        serve_checkpoint(ServeOptions(opening=opening, host=address[0], port=address[1]))


@pytest.mark.parametrize(("kind", "given", "usual"), [("chat", None, 0.7), ("single", None, 0.0), ("single", 0.3, 0.3)])
def test_the_usual_temperature_is_that_of_the_kind_of_model(loaded, instructed, kind, given, usual):
    opening = OpenOptions(str((loaded if kind == "chat" else instructed).path), device="cpu")
    service = text_service(load_checkpoint(opening.path), ServeOptions(opening=opening, usual_temperature=given))
    service.stop()
    assert service.options.decode.sampling.temperature == usual


def test_the_page_is_served_and_may_load_nothing_from_elsewhere(started):
    port = started()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/")
    answer = connection.getresponse()
    page = answer.read().decode()
    assert answer.status == 200 and "<title>" in page and "innerHTML" not in page
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "http://" not in page and "https://" not in page
