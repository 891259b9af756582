"""One checkpoint, asked three ways on a local task: by our adapter, exported under transformers, through our server."""

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("transformers.models.hrm_text")

from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from engine.build.export import export
from engine.build.text_checkpoint import load_model
from engine.export.options import ExportOptions
from engine.generate.options import OpenOptions, ReplyOptions
from engine.serve.app import Service
from lab.harness.model import checkpoint_lm
from tests.chat_runs import chat_flags, served, write_chat_data
from tests.lab.harness.tasks import CHOICE, QUESTIONS, ROLLING, TEXTS, task_folder, write_task  # noqa: F401
from tests.text_runs import text_flags, train_text, write_corpus
from tests.tiny import pretrain


def train(kind, folder):
    if kind == "chat":
        ended = pretrain([*chat_flags(write_chat_data(folder / "data"), folder / "run"), "arch=trm_hf"])
    else:
        ended = train_text([*text_flags(write_corpus(folder / "data"), folder / "run"), "arch=trm_hf"])
    assert ended.code == 0, ended.err
    return folder / "run"


@pytest.fixture(scope="module", params=["text", "chat"])
def run_dir(request, tmp_path_factory):
    return train(request.param, tmp_path_factory.mktemp(request.param))


def told(lm, folder, *tasks):
    """What a model answers to the questions of the tasks, in their order."""
    found = simple_evaluate(
        lm, tasks=list(tasks), task_manager=TaskManager(include_path=str(folder), include_defaults=False)
    )
    return [answer[0] for task in tasks for sample in found["samples"][task] for answer in sample["resps"]]


@pytest.fixture
def local_completions(run_dir, tmp_path):
    """Starts our server and asks it through lm-eval; the exported tokenizer stands beside."""
    pytest.importorskip("tenacity")
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    loaded = load_model(OpenOptions(str(run_dir), device="cpu"))
    service = Service(loaded, ReplyOptions())
    with served(service.app, service.stop) as (_, port):
        yield lambda folder: LocalCompletionsAPI(
            base_url=f"http://127.0.0.1:{port}/v1/completions",
            model=service.model_name,
            tokenizer=str(folder),
            tokenizer_backend="huggingface",
            max_length=loaded.window + 1,
        )


def test_adapter_export_and_server_find_the_same_log_probabilities(run_dir, local_completions, task_folder, tmp_path):  # noqa: F811
    write_task(task_folder, "choice", CHOICE)
    write_task(task_folder, "short", ROLLING, [{"text": text} for text in TEXTS if len(text) < 50])
    write_task(task_folder, "long", ROLLING, [{"text": text} for text in TEXTS if len(text) > 50])
    export(ExportOptions(OpenOptions(str(run_dir)), output=str(tmp_path / "out")))
    loaded = load_model(OpenOptions(str(run_dir), device="cpu"))
    exported = HFLM(pretrained=str(tmp_path / "out"), device="cpu", dtype="float32", batch_size=4)
    for lm, tasks in (
        (exported, ("choice", "short", "long")),
        (local_completions(tmp_path / "out"), ("choice", "short")),
    ):
        # A server always has one token to generate, so that windows of long texts are shorter there.
        found, ours = told(lm, task_folder, *tasks), told(checkpoint_lm(loaded, None, 4), task_folder, *tasks)
        assert len(found) == len(ours) > len(QUESTIONS)
        for one, other in zip(found, ours, strict=True):
            assert one == pytest.approx(other, abs=1e-3), type(lm).__name__
