"""A tiny chat model, and servers of it on threads of this process."""

import threading

import pytest

from engine.build.text_checkpoint import load_model
from engine.generate.options import OpenOptions, ReplyOptions
from engine.serve.app import Server, Service, listening_at
from engine.serve.connections import Bounds
from tests.chat_runs import chat_flags, write_chat_data
from tests.text_runs import text_flags, train_text, write_corpus
from tests.tiny import pretrain


@pytest.fixture(scope="session")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    data = write_chat_data(folder / "data")
    ended = pretrain(chat_flags(data, folder / "ada", {"halt_max_steps": 3}, epochs=8, eval_interval=8, ema=False))
    assert ended.code == 0, ended.err
    return load_model(OpenOptions(str(folder / "ada"), device="cpu"))


@pytest.fixture(scope="session")
def instructed(tmp_path_factory):
    """A tiny model of single questions."""
    folder = tmp_path_factory.mktemp("instructed")
    data = write_corpus(folder / "data")
    ended = train_text(text_flags(data, folder / "single", epochs=1))
    assert ended.code == 0, ended.err
    return load_model(OpenOptions(str(folder / "single"), device="cpu"))


@pytest.fixture
def started(loaded):
    """Starts servers, and ends them."""
    running = []

    def start(model=loaded, **options):
        names = {"api_key", "answers_at_once", "max_waiting"} & set(options)
        service = Service(
            model,
            ReplyOptions(max_tokens=12),
            Bounds(**{name: value for name, value in options.items() if name not in names}),
            **{name: options[name] for name in names},
        )
        listening = listening_at("127.0.0.1", 0)
        server = Server(service.app, service.bounds, listening, service.scheduler.stop)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        running.append((server, thread))
        return listening.getsockname()[1]

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()
