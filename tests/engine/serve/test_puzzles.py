"""The server of puzzles: boards, examples and answers step by step, and what is refused."""

import http.client
import json
import socket
import subprocess
import sys
import time
from urllib.parse import urlencode

import numpy as np
import pytest

from dataset.puzzles.arc_grids import at_corner, crop
from dataset.puzzles.format import read_metadata
from dataset.puzzles.samples import Samples
from engine.build.puzzle_checkpoint import load_puzzle_model
from engine.checkpoints.load import load_checkpoint
from engine.generate.options import OpenOptions, ReplyOptions, ServeOptions
from engine.serve import puzzles as room
from engine.serve.connections import Bounds
from engine.serve.puzzles import PuzzleService, puzzle_service
from engine.tasks.traces import trace_samples
from tests.dataset.puzzle_samples import write_parity_dataset
from tests.engine.serve.puzzle_checkpoints import untrained
from tests.engine.serve.test_app import ask, get
from tests.tiny import ROOT, wait_for

SOLVE = "/puzzles/solve"


def found(port, path, **words):
    status, text = get(port, f"{path}?{urlencode(words)}" if words else path)
    return status, json.loads(text)


def test_the_board_is_told(solving, sudoku, maze, arc):
    status, board = found(solving(), "/puzzles/board")
    assert status == 200 and board["model"] == "dots" and board["data"].endswith("data")
    assert (board["game"], board["side"], board["box"]) == ("sudoku", 4, [2, 2])
    assert board["tokens"] == ["", ".", "1", "2", "3", "4"] and board["needs_identifier"] is False
    assert (board["steps"], board["most_steps"]) == (3, 64)
    _, board = found(solving(maze), "/puzzles/board")
    assert (board["game"], board["side"], board["tokens"]) == ("maze", 5, ["", "#", " ", "S", "G", "o"])
    _, board = found(solving(arc), "/puzzles/board")
    assert (board["game"], board["side"], board["needs_identifier"]) == ("arc", 30, True)
    assert board["tokens"] == ["", "end", *"0123456789"]


def test_answers_are_those_of_the_pictures_step_by_step(solving, sudoku):
    port, held_out = solving(), Samples(sudoku.config.data_paths[0])
    traces = trace_samples(sudoku.head, [held_out[number] for number in range(10)], sudoku.runtime)
    for number, trace in enumerate(traces):
        _, example = found(port, "/puzzles/example", number=number)
        assert example["inputs"] == trace.sample.inputs.tolist() and example["labels"] == trace.sample.labels.tolist()
        asked = {name: example[name] for name in ("inputs", "labels", "identifier")}
        status, solved = ask(port, asked, SOLVE)
        assert status == 200 and solved["problem"] is None and len(solved["steps"]) == 3
        for number, step in enumerate(solved["steps"], start=1):
            board = trace.answer(number, number - 1)
            assert step["tokens"] == board.tokens.tolist()
            assert step["halting"] == pytest.approx(trace.halting[number - 1], rel=1e-4)
            assert step["wrong"] == np.flatnonzero(board.wrong).tolist()
            assert step["changed"] == np.flatnonzero(board.changed).tolist()
            assert step["valid"] is (not step["wrong"])
    assert any(trace.answer(2, 1).changed.any() for trace in traces), "else nothing was seen to change"
    _, longer = ask(port, asked | {"steps": 9}, SOLVE)
    assert len(longer["steps"]) == 9 and longer["steps"][:3] == solved["steps"]
    _, unknown = ask(port, {"inputs": example["inputs"], "steps": 1}, SOLVE)
    assert unknown["steps"] == [{**solved["steps"][0], "wrong": None}]


def test_examples_are_held_out_ones_drawn_anew_or_by_number(solving, sudoku):
    port = solving()
    drawn = [found(port, "/puzzles/example")[1] for _ in range(20)]
    held_out = Samples(sudoku.config.data_paths[0])
    assert len({example["number"] for example in drawn}) > 1
    for example in drawn:
        assert example["split"] == "test" and example["inputs"] == held_out[example["number"]].inputs.tolist()
    _, trained = found(port, "/puzzles/example", split="train", number=0)
    assert trained["inputs"] == Samples(sudoku.config.data_paths[0], "train")[0].inputs.tolist()
    assert found(port, "/puzzles/names")[1] == {"test": [], "train": []}
    for words, status in (({"number": 10}, 404), ({"number": -1}, 400), ({"split": "x"}, 400), ({"size": 3}, 400)):
        assert found(port, "/puzzles/example", **words)[0] == status
    assert found(port, "/puzzles/example", name="e13")[0] == 404


def test_a_missing_data_set_is_told_and_the_model_solves_all_the_same(solving, sudoku, tmp_path):
    stored = load_checkpoint(sudoku.path)
    stored.config_yaml = stored.config_yaml.replace(sudoku.config.data_paths[0], "gone/away")
    port = solving(load_puzzle_model(stored, "cpu"))
    status, told = found(port, "/puzzles/example")
    assert status == 404 and "gone/away" in told["error"]["message"]
    assert found(port, "/puzzles/names")[0] == 404
    assert ask(port, {"inputs": [1] * 16}, SOLVE)[0] == 200


def test_data_of_another_board_are_refused(solving, sudoku, maze):
    stored = load_checkpoint(sudoku.path)
    stored.config_yaml = stored.config_yaml.replace(sudoku.config.data_paths[0], maze.config.data_paths[0])
    status, told = found(solving(load_puzzle_model(stored, "cpu")), "/puzzles/example")
    assert status == 404 and "25 cells" in told["error"]["message"]


def test_a_maze_without_a_way_is_told(solving, maze):
    port = solving(maze)
    _, solved = ask(port, {"inputs": [2] * 25}, SOLVE)
    assert "0 starts" in solved["problem"] and {step["valid"] for step in solved["steps"]} == {False}
    _, example = found(port, "/puzzles/example")
    assert ask(port, {"inputs": example["inputs"]}, SOLVE)[1]["problem"] is None


def test_arc_puzzles_are_known_by_name(solving, arc):
    port = solving(arc)
    _, names = found(port, "/puzzles/names")
    assert names["test"] and names["train"] and not any("|||" in name for name in names["test"] + names["train"])
    for split in ("test", "train"):
        samples = Samples(arc.config.data_paths[0], split)
        for name in names[split]:
            _, example = found(port, "/puzzles/example", split=split, name=name)
            sample = samples[example["number"]]
            assert example["name"] == name and example["identifier"] == sample.identifier > 0
            assert example["inputs"] == at_corner(sample.inputs).tolist()
            (question,), (answer,) = (
                crop(np.array([token or 0 for token in example[key]])[None]) for key in ("inputs", "labels")
            )
            assert question.size and answer.size
    status, solved = ask(port, {name: example[name] for name in ("inputs", "labels", "identifier")}, SOLVE)
    assert status == 200 and {step["valid"] for step in solved["steps"]} == {None}
    status, told = ask(port, {"inputs": example["inputs"]}, SOLVE)
    assert status == 400 and told["error"]["param"] == "identifier"
    _, drawn = found(port, "/puzzles/example")
    assert drawn["name"] in names["test"]


def test_identifiers_follow_the_numbers_of_the_training(solving, tmp_path):
    folders = [write_parity_dataset(tmp_path / name, "arc/default") for name in ("one", "two")]
    stored = untrained(folders[0], {"puzzle_emb_ndim": 32})
    own = read_metadata(folders[0], "train").num_puzzle_identifiers
    stored.weights["model.inner.puzzle_emb.weights"] = stored.weights["model.inner.puzzle_emb.weights"].repeat(2, 1)[
        :-1
    ]
    config = json.loads(stored.config_yaml)
    config |= {"data_paths": [str(folder) for folder in folders], "data_paths_test": [str(folders[1])]}
    stored.config_yaml = json.dumps(config)
    model = load_puzzle_model(stored)
    port = solving(model)
    _, example = found(port, "/puzzles/example", number=0)
    assert example["identifier"] == Samples(folders[1])[0].identifier + own - 1
    assert ask(port, {"inputs": example["inputs"], "identifier": example["identifier"]}, SOLVE)[0] == 200


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "inputs"),
        ({"inputs": [1] * 15}, "16"),
        ({"inputs": [1] * 15 + [6]}, "0 to 5"),
        ({"inputs": [1] * 15 + [-1]}, "inputs"),
        ({"inputs": [1] * 15 + [True]}, "inputs"),
        ({"inputs": [1] * 15 + [2**70]}, "0 to 5"),
        ({"inputs": [1] * 16, "labels": [1]}, "labels"),
        ({"inputs": [1] * 16, "labels": [None] * 15 + [9]}, "labels"),
        ({"inputs": [1] * 16, "steps": 0}, "steps"),
        ({"inputs": [1] * 16, "steps": 65}, "64"),
        ({"inputs": [1] * 16, "identifier": 1}, "0 to 0"),
        ({"inputs": [1] * 16, "depth": 3}, "depth"),
        (b"[", "body"),
    ],
)
def test_what_cannot_be_solved_is_refused_in_words(solving, body, told):
    status, answer = ask(solving(), body, SOLVE)
    assert status == 400 and told in answer["error"]["message"]


def test_requests_are_bounded_and_guarded(solving):
    port = solving(bounds=Bounds(body_bytes=1000), api_key="sesame")
    assert get(port, "/")[0] == get(port, "/health")[0] == 200
    assert get(port, "/puzzles/board")[0] == 401
    key = {"Authorization": "Bearer sesame"}
    assert get(port, "/puzzles/board", **key)[0] == 200
    assert ask(port, b" " * 1001, SOLVE, **key)[0] == 413
    assert ask(port, {"inputs": [1] * 16}, SOLVE, **key | {"Content-Type": "text/plain"})[0] == 415
    assert get(port, "/puzzles/board", Host="elsewhere.example", **key)[0] == 421
    assert get(port, SOLVE, **key)[0] == 405
    status, text = get(port, "/metrics", **key)
    assert status == 200 and 'path="/puzzles/solve",outcome="413"' in text and "token" not in text


def test_there_is_no_text_here(solving):
    port = solving()
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/models"):
        status, told = ask(port, {"messages": []}, path)
        assert status == 404 and "puzzles" in told["error"]["message"]
    assert "puzzles" in found(port, "/v1/models")[1]["error"]["message"]


@pytest.fixture
def slow_steps(monkeypatch):
    """Every supervision step takes a moment; how many there were is counted."""
    honest, taken = room.follow, []

    def slow(*given):
        for step in honest(*given):
            taken.append(step)
            time.sleep(0.02)
            yield step

    monkeypatch.setattr(room, "follow", slow)
    return taken


def posted(port, steps):
    body = json.dumps({"inputs": [1] * 16, "steps": steps}).encode()
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    head = f"POST {SOLVE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    connection.sendall(head.encode() + b"\r\n\r\n" + body)
    return connection


def test_more_than_may_wait_are_told_to_come_again_and_who_leaves_is_solved_no_longer(sudoku, serving, slow_steps):
    service = PuzzleService(sudoku, max_waiting=1)
    port = serving(service)
    first = posted(port, 64)
    wait_for(lambda: slow_steps)
    second = posted(port, 1)
    wait_for(lambda: service.num_asked == 2)
    status, told = ask(port, {"inputs": [1] * 16}, SOLVE)
    assert status == 503 and "1 puzzles" in told["error"]["message"]
    first.close()
    assert second.recv(12) == b"HTTP/1.1 200"
    second.close()
    assert len(slow_steps) < 40
    assert ask(port, {"inputs": [1] * 16, "steps": 1}, SOLVE)[0] == 200


def test_a_client_that_only_ends_its_own_side_gets_its_answer(solving, slow_steps):
    connection = posted(solving(), 30)
    connection.shutdown(socket.SHUT_WR)
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    assert answer.status == 200 and len(json.loads(answer.read())["steps"]) == 30


def test_an_answer_has_its_time(solving, slow_steps):
    status, told = ask(solving(bounds=Bounds(answer_seconds=0.1)), {"inputs": [1] * 16, "steps": 64}, SOLVE)
    assert status == 503 and "time" in told["error"]["message"] and len(slow_steps) < 20


def test_a_server_that_stops_says_so(sudoku, serving, slow_steps):
    service = PuzzleService(sudoku)
    asked = posted(serving(service), 64)
    wait_for(lambda: slow_steps)
    service.stop()
    assert asked.recv(12) == b"HTTP/1.1 503"


def test_failures_of_the_model_are_told(solving, monkeypatch):
    def broken(*given):
        raise RuntimeError("out of memory")
        yield

    monkeypatch.setattr(room, "follow", broken)
    status, told = ask(solving(), {"inputs": [1] * 16}, SOLVE)
    assert status == 500 and "out of memory" in told["error"]["message"]


def test_options_of_text_are_refused(sudoku_run):
    stored, opening = load_checkpoint(sudoku_run), OpenOptions(str(sudoku_run), device="cpu")
    for changed in ({"usual_temperature": 1.0}, {"reply": ReplyOptions(max_tokens=3)}, {"answers_at_once": 2}):
        with pytest.raises(ValueError, match=next(iter(changed))):
            puzzle_service(stored, ServeOptions(opening=opening, **changed))
    service = puzzle_service(stored, ServeOptions(opening=opening, max_waiting=3))
    assert service.max_waiting == 3


@pytest.mark.parametrize(("kind", "stranger"), [("puzzles", "engine.serve.app"), ("text", "engine.serve.puzzles")])
def test_the_command_serves_either_kind_without_importing_the_other(sudoku_run, loaded, kind, stranger):
    path = sudoku_run if kind == "puzzles" else loaded.path
    program = (
        "import sys, runpy, threading, atexit\n"
        f"sys.argv = ['serve.py', '--checkpoint', {str(path)!r}, '--port', '0', '--device', 'cpu']\n"
        "from engine.serve.server import Server\n"
        f"Server.serve_forever = lambda self: print({stranger!r} in sys.modules)\n"
        "runpy.run_path('serve.py', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    address, imported = done.stdout.split()
    assert address.startswith("http://127.0.0.1:") and imported == "False", done.stderr


def test_the_page_is_served_and_may_load_nothing_from_elsewhere(solving):
    connection = http.client.HTTPConnection("127.0.0.1", solving(), timeout=10)
    connection.request("GET", "/")
    answer = connection.getresponse()
    page = answer.read().decode()
    assert answer.status == 200 and "<title>Puzzle" in page and "innerHTML" not in page
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "http://" not in page and "https://" not in page
