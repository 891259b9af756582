"""A chat model that left answers the same held-out questions everywhere: transformers, generate.py, the server."""

import http.client
import json
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from dataset.text.conversation import Turn
from dataset.text.sample_corpus import make_sample_records
from engine.build.text_checkpoint import load_model
from engine.generate.options import OpenOptions, ReplyOptions
from engine.generate.reply import reply
from tests.chat_runs import chat_flags, write_chat_data
from tests.tiny import ROOT, end, first_line, run_door, start

NUM_QUESTIONS, NUM_TOKENS = 100, 16
ARCH = {"hidden_size": 64, "num_heads": 4, "L_layers": 1, "H_cycles": 1, "L_cycles": 2, "halt_max_steps": 2}


def served(folder, questions):
    """The answers of serve.py, of which many are asked for at once."""
    process = start(["--checkpoint", str(folder), "--port", "0", "--device", "cpu"], ROOT, door="serve.py")

    def answer(question):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        asked = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": NUM_TOKENS}
        connection.request("POST", "/v1/chat/completions", json.dumps(asked), {"Content-Type": "application/json"})
        return json.loads(connection.getresponse().read())["choices"][0]["message"]["content"]

    try:
        port = int(first_line(process).rpartition(":")[2])
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(answer, questions))
    finally:
        process.send_signal(signal.SIGTERM)
        end(process)


def by_transformers(folder, questions):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    answers = []
    for question in questions:
        asked = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        made = model.generate(**ids, max_new_tokens=NUM_TOKENS, max_length=None, do_sample=False)
        answers.append(tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_held_out_questions_have_the_same_answers_everywhere(tmp_path):
    pytest.importorskip("transformers.models.hrm_text")
    records = make_sample_records(2500, 0, 0.08)
    questions = [record["conversations"][0]["value"] for record in records["test"]][:NUM_QUESTIONS]
    assert len(questions) == NUM_QUESTIONS
    words = ["--tokenizer", "train:600", "--train-split", "0.95"]
    write_chat_data(tmp_path / "data", *words, records=records["train"])
    short = {"global_batch_size": 16, "epochs": 8, "eval_interval": 8, "lr": 3e-3}
    ended = run_door("pretrain.py", *chat_flags(tmp_path / "data", tmp_path / "run", ARCH, **short), "arch=trm_hf")
    assert ended.code == 0, ended.err

    left = run_door("scripts/export.py", "--checkpoint", tmp_path / "run", "--output", tmp_path / "left")
    assert left.code == 0, left.err
    report = json.loads(left.out)
    assert report["layout"] == "hrm_text" and report["max_logit_difference"] < 1e-4

    asked, texts = [[Turn("user", question)] for question in questions], []
    for place in (tmp_path / "run", tmp_path / "left"):
        loaded = load_model(OpenOptions(str(place), device="cpu"))
        texts.append([answer.text for answer in reply(loaded, asked, ReplyOptions(max_tokens=NUM_TOKENS))])
    ours = texts[0]
    assert texts[1] == ours
    assert len(set(ours)) > 10  # it has learned to answer differently
    assert by_transformers(tmp_path / "left", questions) == ours
    assert served(tmp_path / "left", questions) == ours
    said = run_door(
        *("generate.py", "--checkpoint", tmp_path / "left", "--prompt", questions[0], "--temperature", "0"),
        *("--max-new-tokens", NUM_TOKENS, "--device", "cpu"),
    )
    assert said.code == 0 and said.out.strip() == ours[0].strip(), said.err
