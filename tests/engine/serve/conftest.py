"""Tiny models of chat and of puzzles, servers of them on threads of this process, and a browser."""

import shutil
from contextlib import ExitStack

import pytest

from dataset.build_maze_dataset import main as build_maze
from engine.build.puzzle_checkpoint import load_puzzle_model
from engine.build.text_checkpoint import load_model
from engine.checkpoints.load import load_checkpoint
from engine.generate.options import OpenOptions, ReplyOptions
from engine.serve.app import Service
from engine.serve.connections import Bounds
from engine.serve.puzzles import PuzzleService
from tests.chat_runs import chat_flags, served, write_chat_data
from tests.dataset.puzzle_samples import write_parity_dataset
from tests.engine.serve.puzzle_checkpoints import untrained
from tests.text_runs import text_flags, train_text, write_corpus
from tests.tiny import flags, pretrain, write_sudoku


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
def serving():
    """Serves what is given, and ends it."""
    with ExitStack() as running:
        yield lambda service: running.enter_context(served(service.app, service.stop, service.bounds))[1]


@pytest.fixture
def started(loaded, serving):
    """Starts servers of text, and ends them."""

    def start(model=loaded, **options):
        names = {"api_key", "answers_at_once", "max_waiting"} & set(options)
        service = Service(
            model,
            ReplyOptions(max_tokens=12),
            Bounds(**{name: value for name, value in options.items() if name not in names}),
            **{name: options[name] for name in names},
        )
        return serving(service)

    return start


@pytest.fixture(scope="session")
def sudoku_run(tmp_path_factory):
    place = tmp_path_factory.mktemp("serve_sudoku")
    data = write_sudoku(place / "data")
    ended = pretrain(flags(data, place / "dots", epochs=60, eval_interval=60))
    assert ended.code == 0, ended.err
    return place / "dots"


@pytest.fixture(scope="session")
def sudoku(sudoku_run):
    return load_puzzle_model(load_checkpoint(sudoku_run), "cpu")


@pytest.fixture(scope="session")
def maze(tmp_path_factory):
    data = tmp_path_factory.mktemp("serve_maze") / "maze"
    build_maze(["--generate", "5", "--count", "5", "--test-count", "5", "--output-dir", str(data)])
    return load_puzzle_model(untrained(data))


@pytest.fixture(scope="session")
def arc(tmp_path_factory):
    data = write_parity_dataset(tmp_path_factory.mktemp("serve_arc") / "arc", "arc/default")
    return load_puzzle_model(untrained(data, {"puzzle_emb_ndim": 32}))


@pytest.fixture
def solving(serving, sudoku):
    """Starts servers of puzzles, and ends them."""

    def start(model=sudoku, bounds=None, **options):
        return serving(PuzzleService(model, bounds, **options))

    return start


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium here")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser):
    """Opens tabs; at the end no page has had a fault."""
    faults, tabs = [], []

    def open_tab(port, width=1000):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}/")
        tabs.append(page)
        return page

    yield open_tab
    for page in tabs:
        page.close()
    assert faults == []
