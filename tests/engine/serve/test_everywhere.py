"""One model, exported: transformers, our own programs and the server say the same to the same questions."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from dataset.text.conversation import Turn
from engine.build.export import export
from engine.build.text_checkpoint import load_model
from engine.export.options import ExportOptions
from engine.generate.options import OpenOptions, ReplyOptions
from engine.generate.reply import reply
from tests.chat_runs import NAMES, chat_flags, write_chat_data
from tests.engine.serve.test_app import ask
from tests.tiny import pretrain

transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.models.hrm_text")

QUESTIONS = [f"My name is {name} and I have {number} cats." for name in NAMES for number in range(6, 15)][
    :100
]  # unseen
TOKENS = 12


@pytest.mark.slow
def test_a_hundred_unseen_questions_have_the_same_answers_everywhere(started, tmp_path):
    data = write_chat_data(tmp_path / "data")
    ended = pretrain([*chat_flags(data, tmp_path / "run", {}, epochs=12, eval_interval=12), "arch=trm_hf"])
    assert ended.code == 0, ended.err
    export(ExportOptions(OpenOptions(str(tmp_path / "run")), output=str(tmp_path / "exported")))

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    by_transformers = []
    for question in QUESTIONS:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        said = theirs.generate(**ids, do_sample=False, max_new_tokens=TOKENS)[0, ids["input_ids"].shape[1] :]
        by_transformers.append(tokenizer.decode(said, skip_special_tokens=True))

    loaded = load_model(OpenOptions(str(tmp_path / "exported"), device="cpu"))
    answers = reply(loaded, [[Turn("user", text)] for text in QUESTIONS], ReplyOptions(max_tokens=TOKENS))
    port = started(loaded)

    def served(question):
        asked = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": TOKENS}
        return ask(port, asked)[1]["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(served, QUESTIONS)) == [answer.text for answer in answers] == by_transformers
    assert len(set(by_transformers)) > 5
