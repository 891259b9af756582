"""A checkpoint under lm-eval: what is scored and generated is what our own programs score and generate."""

import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from dataset.text.conversation import Turn
from engine.build.text_checkpoint import load_model
from engine.generate.decode import Decoding
from engine.generate.options import DecodeOptions, OpenOptions, ReplyOptions
from engine.generate.reply import reply
from lab.harness.model import checkpoint_lm
from tests.chat_runs import chat_flags, write_chat_data
from tests.text_runs import text_flags, train_text, write_corpus
from tests.tiny import pretrain

ASKED = [{"role": "user", "content": "2 + 3? <|sep|>"}]
HISTORY = [
    {"role": "system", "content": "Hi."},
    {"role": "user", "content": "Hey"},
    {"role": "assistant", "content": "Hi!"},
    *ASKED,
]


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """Trained with plain markers, prompts in both directions, in a window of 72."""
    folder = tmp_path_factory.mktemp("marked")
    data = write_corpus(folder / "data")
    ended = train_text(text_flags(data, folder / "run", epochs=1, arch={"prefix_mask": True}))
    assert ended.code == 0, ended.err
    return load_model(OpenOptions(str(folder / "run"), device="cpu"))


@pytest.fixture(scope="module")
def special(tmp_path_factory):
    """Trained with special tokens."""
    folder = tmp_path_factory.mktemp("special")
    ended = pretrain(chat_flags(write_chat_data(folder / "data"), folder / "run", epochs=1, eval_interval=1))
    assert ended.code == 0, ended.err
    return load_model(OpenOptions(str(folder / "run"), device="cpu"))


@pytest.fixture(params=["marked", "special"])
def loaded(request):
    return request.getfixturevalue(request.param)


def asked(kind, *arguments):
    return [Instance(request_type=kind, doc={}, arguments=each, idx=0) for each in arguments]


def decoded(loaded, prompt, answer, depth, open_length=None):
    """How likely an answer is, token by token, and whether it is the greedy one."""
    tokens = [
        token
        for (token,) in Decoding(
            loaded.model,
            [prompt],
            DecodeOptions(depth=depth, num_top=1),
            forced=[answer],
            open_lengths=None if open_length is None else [open_length],
        )
    ]
    return sum(token.logprob for token in tokens), all(token.top[0][0] == token.id for token in tokens)


@pytest.mark.parametrize("depth", [1, 3])
def test_a_plain_answer_is_as_likely_as_decoding_says(loaded, depth):
    lm = checkpoint_lm(loaded, depth, batch_size=2)
    pairs = [("What is 2 plus 3?", " 5"), ("", "Hello"), ("One ", "cat and two dogs"), ("Hi", " <|user|>")]
    split = [("What is 2 plus 3?", " 5"), ("", "Hello"), ("One", " cat and two dogs"), ("Hi", " <|user|>")]
    encode = loaded.tokenizer.encode
    for (before, after), (logprob, is_greedy) in zip(
        split, lm.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True), strict=True
    ):
        prompt = encode(before) or [lm.prefix_token_id]
        expected, greedy = decoded(loaded, prompt, encode(before + after)[len(encode(before)) :], depth)
        assert logprob == pytest.approx(expected, abs=1e-4) and is_greedy == greedy


def test_the_likeliest_answer_is_greedy(loaded):
    lm = checkpoint_lm(loaded, 2, batch_size=2)
    prompt = lm.apply_chat_template(ASKED)
    ids = loaded.template.encode_prompt([Turn("user", ASKED[0]["content"])])
    ((token,),) = Decoding(loaded.model, [ids], DecodeOptions(depth=2))
    (likeliest, other) = lm._loglikelihood_tokens([((prompt, ""), ids, [token.id]), ((prompt, ""), ids, [5])], True)
    assert likeliest[1] and not other[1] and likeliest[0] > other[0]


@pytest.mark.parametrize("history", [ASKED, HISTORY])
def test_a_conversation_is_encoded_as_in_training(loaded, history):
    lm, turns = checkpoint_lm(loaded, 2, batch_size=2), [Turn(turn["role"], turn["content"]) for turn in history]
    prompt = loaded.template.encode_prompt(turns)
    opened = len(loaded.template.encode_prompt(turns[:2])) if history is HISTORY else len(prompt)
    expected = decoded(loaded, prompt, loaded.tokenizer.encode("Five cats."), 2, opened)
    context = lm.apply_chat_template(history)
    found = lm.loglikelihood(asked("loglikelihood", (context, "Five cats.")), disable_tqdm=True)
    assert found[0][0] == pytest.approx(expected[0], abs=1e-4)


def test_an_answer_that_is_begun_goes_on_within_its_text(loaded):
    lm, encode = checkpoint_lm(loaded, 2, batch_size=2), loaded.tokenizer.encode
    context = lm.apply_chat_template([*ASKED, {"role": "assistant", "content": "Five"}], add_generation_prompt=False)
    assert context != lm.apply_chat_template([*ASKED, {"role": "assistant", "content": "Five"}])
    before, after = lm._encode_pair(context, " cats.")
    assert before + after == loaded.template.encode_prompt([Turn("user", ASKED[0]["content"])]) + encode("Five cats.")
    (text,) = lm.generate_until(asked("generate_until", (context, {"max_gen_toks": 3})), disable_tqdm=True)
    assert isinstance(text, str)


def test_a_whole_text_is_scored_in_windows_each_token_once(loaded, monkeypatch):
    lm, text, scored = checkpoint_lm(loaded, 1, batch_size=3), "Hello you. " * 60, []
    honest = lm._loglikelihood_tokens
    monkeypatch.setattr(lm, "_loglikelihood_tokens", lambda pairs, *rest: scored.extend(pairs) or honest(pairs, *rest))
    short, none, whole = lm.loglikelihood_rolling(asked("", ("Hello",), ("",), (text,)), disable_tqdm=True)
    ids = loaded.tokenizer.encode("Hello")
    assert short == pytest.approx(decoded(loaded, [lm.prefix_token_id], ids, 1)[0], abs=1e-4) and none == 0.0
    windows = scored[1:]
    assert sum((after for _, _, after in windows), []) == loaded.tokenizer.encode(text) and len(windows) > 2
    assert all(len(before) + len(after) == loaded.window + 1 for _, before, after in windows)
    assert whole == pytest.approx(sum(decoded(loaded, before, after, 1)[0] for _, before, after in windows), abs=1e-2)


def test_a_text_is_generated_as_a_reply_is(loaded):
    lm, how = checkpoint_lm(loaded, 3, batch_size=2), {"until": ["\n"], "max_gen_toks": 6}
    histories = [HISTORY, *([{"role": "user", "content": f"{number} plus 3?"}] for number in range(3))]
    turns = [[Turn(turn["role"], turn["content"]) for turn in history] for history in histories]
    contexts = [lm.apply_chat_template(history) for history in histories]
    found = lm.generate_until(asked("", *((context, how) for context in contexts)), disable_tqdm=True)
    options = ReplyOptions(max_tokens=6, stop=["\n"], decode=DecodeOptions(depth=3))
    assert found == [answer.text for answer in reply(loaded, turns, options)] and any(found)


def test_a_plain_text_goes_on_up_to_a_stop_text(marked):
    lm = checkpoint_lm(marked, 2, batch_size=2)
    (whole,) = lm.generate_until(asked("", ("My name is", {"max_gen_toks": 12})), disable_tqdm=True)
    assert len(whole) > 3
    stop = whole[len(whole) // 2]
    (cut,) = lm.generate_until(asked("", ("My name is", {"max_gen_toks": 12, "until": stop})), disable_tqdm=True)
    assert cut == whole.partition(stop)[0]


def test_repeated_samples_differ_and_can_be_repeated(loaded):
    lm, how = checkpoint_lm(loaded, 2, batch_size=4), {"do_sample": True, "temperature": 2.0, "max_gen_toks": 12}
    first, again = (lm.generate_until(asked("", *[("My name is", how)] * 3), disable_tqdm=True) for _ in range(2))
    assert first == again and len(set(first)) == 3


def test_what_does_not_fit_loses_its_beginning_and_that_is_said(loaded, capsys):
    lm, long = checkpoint_lm(loaded, 1, batch_size=2), "Hello you. " * 60
    ((logprob, _),) = lm.loglikelihood(asked("", (long, " cats")), disable_tqdm=True)
    assert "1 prompts" in capsys.readouterr().err
    ids, answer = loaded.tokenizer.encode(long.rstrip()), loaded.tokenizer.encode(f"{long} cats")
    answer = answer[len(ids) :]
    assert logprob == pytest.approx(decoded(loaded, ids[-(loaded.window + 1 - len(answer)) :], answer, 1)[0], abs=1e-4)
    (text,) = lm.generate_until(asked("", (long, {"max_gen_toks": 1000})), disable_tqdm=True)
    assert isinstance(text, str) and "1 prompts" in capsys.readouterr().err
    with pytest.raises(ValueError, match=f"window of {loaded.window}"):
        lm.loglikelihood(asked("", ("Hi", long)), disable_tqdm=True)


def test_what_a_task_asks_of_generating_and_we_lack_is_refused(marked):
    with pytest.raises(ValueError, match="num_beams"):
        checkpoint_lm(marked, 1, 2).generate_until(asked("", ("Hi", {"num_beams": 4})), disable_tqdm=True)


def test_ctrl_c_ends_the_evaluation(marked, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(Decoding, "__iter__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint_lm(marked, 1, 2).generate_until(asked("", ("Hi", {})), disable_tqdm=True)
