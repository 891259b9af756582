"""The data sets of the Hub that a corpus is made of: where they are, under which licence, how many rows are taken.

Left out on purpose: what may not be used commercially (ShareGPT, Alpaca-GPT4), what asks for an agreement first
(StarCoder data, The Stack), and what is far larger than its use here (Natural Questions with its pages).
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

Record = Mapping[str, Any]  # as its repository has it
Row = dict[str, Any]  # `text`, `messages`, or `prompt` and `response`
CATEGORIES = ("instruction_chat", "code", "math_reasoning", "factual_qa")
SOLUTIONS_PER_PROBLEM = 10  # of APPS, which has up to hundreds


@dataclass(frozen=True)
class HubSource:
    name: str  # of the file that it becomes
    category: str
    repo: str
    pattern: str  # of its files, in order
    license: str  # as its card says
    rows: int  # at most so many, from the beginning
    read: Callable[[Record], Iterable[Row]]  # the rows of one record; none if it has nothing to learn

    @property
    def card(self) -> str:
        return f"https://huggingface.co/datasets/{self.repo}"


def _pair(prompt: str, response: str, context: str = "") -> Callable[[Record], Iterable[Row]]:
    """Reads a prompt, the text it is about (where there is one), and the answer."""

    def read(record: Record) -> Iterable[Row]:
        if record.get(prompt) and record.get(response):
            text = f"{record[prompt]}\n\n{record[context]}" if record.get(context) else record[prompt]
            yield {"prompt": text, "response": record[response]}

    return read


def _turns(field: str) -> Callable[[Record], Iterable[Row]]:
    def read(record: Record) -> Iterable[Row]:
        if turns := record.get(field):
            messages = [
                {"role": turn.get("role", turn.get("from")), "content": turn.get("content", turn.get("value"))}
                for turn in turns
            ]
            yield {"messages": messages}

    return read


def _function(record: Record) -> Iterable[Row]:
    if text := record.get("whole_func_string") or record.get("func_code_string"):
        yield {"text": text}


def _contest_problem(record: Record) -> Iterable[Row]:
    """One row for each of the first solutions, which the record holds as a JSON list in a string."""
    solutions = json.loads(record["solutions"]) if record.get("solutions") else []
    starter = record.get("starter_code")
    prompt = f"{record['question']}\n\n{starter}" if starter else record["question"]
    for solution in solutions[:SOLUTIONS_PER_PROBLEM]:
        yield {"prompt": prompt, "response": solution}


def _task_with_tests(record: Record) -> Iterable[Row]:
    tests = "\n".join(record.get("test_list") or [])
    yield {"prompt": f"{record['text']}\n\n{tests}".strip(), "response": record["code"]}


def _passage_question(record: Record) -> Iterable[Row]:
    answers = record["answers"]["text"]
    answer = answers[0] if answers else "The passage does not say."
    yield {"prompt": f"{record['context']}\n\n{record['question']}", "response": answer}


def _many_paragraphs(record: Record) -> Iterable[Row]:
    titles, paragraphs = record["context"]["title"], record["context"]["sentences"]
    passages = [f"{title}: {''.join(lines)}" for title, lines in zip(titles, paragraphs, strict=True)]
    yield {"prompt": "\n\n".join([*passages, record["question"]]), "response": record["answer"]}


def _first_answer(record: Record) -> Iterable[Row]:
    answer = record["answer"]
    answer = answer["value"] if isinstance(answer, Mapping) else answer[0]
    yield {"prompt": record["question"], "response": answer}


METAMATH = HubSource(
    "metamath", "math_reasoning", "meta-math/MetaMathQA", "MetaMathQA-395K.json", "mit",
    395_000, _pair("query", "response"),
)  # fmt: skip
CODE_SEARCH_NET = HubSource(
    "code_search_net", "code", "code-search-net/code_search_net", "python/train-*.parquet",
    "other (each function under the licence of its repository)", 412_178, _function,
)  # fmt: skip
APPS = HubSource("apps", "code", "codeparrot/apps", "train.jsonl", "mit", 50_000, _contest_problem)
MBPP = HubSource(
    "mbpp", "code", "google-research-datasets/mbpp", "full/train-*.parquet", "cc-by-4.0", 374, _task_with_tests
)

# The balanced first corpus: about 300,000 rows.
BASELINE = (replace(METAMATH, rows=125_000), replace(CODE_SEARCH_NET, rows=125_000), APPS, MBPP)

CURRICULUM = (
    HubSource(
        "openhermes", "instruction_chat", "teknium/OpenHermes-2.5", "openhermes2_5.json",
        "not stated on its card", 1_001_551, _turns("conversations"),
    ),
    HubSource(
        "ultrachat", "instruction_chat", "HuggingFaceH4/ultrachat_200k", "data/train_sft-*.parquet", "mit",
        207_865, _turns("messages"),
    ),
    HubSource(
        "slimorca", "instruction_chat", "Open-Orca/SlimOrca", "*.jsonl", "mit", 517_982, _turns("conversations")
    ),
    HubSource(
        "dolly", "instruction_chat", "databricks/databricks-dolly-15k", "databricks-dolly-15k.jsonl",
        "cc-by-sa-3.0", 15_011, _pair("instruction", "response", "context"),
    ),
    HubSource(
        "code_alpaca", "code", "sahil2801/CodeAlpaca-20k", "code_alpaca_20k.json", "cc-by-4.0",
        20_022, _pair("instruction", "output", "input"),
    ),
    HubSource(
        "magicoder", "code", "ise-uiuc/Magicoder-OSS-Instruct-75K", "data-oss_instruct-decontaminated.jsonl", "mit",
        75_197, _pair("problem", "solution"),
    ),
    APPS,
    MBPP,
    CODE_SEARCH_NET,
    HubSource(
        "numina_cot", "math_reasoning", "AI-MO/NuminaMath-CoT", "data/train-*.parquet", "apache-2.0",
        859_494, _pair("problem", "solution"),
    ),
    METAMATH,
    HubSource(
        "orca_math", "math_reasoning", "microsoft/orca-math-word-problems-200k", "data/train-*.parquet", "mit",
        200_035, _pair("question", "answer"),
    ),
    HubSource(
        "mathinstruct", "math_reasoning", "TIGER-Lab/MathInstruct", "MathInstruct.json", "mit",
        262_039, _pair("instruction", "output"),
    ),
    HubSource(
        "gsm8k", "math_reasoning", "openai/gsm8k", "main/train-*.parquet", "mit", 7_473, _pair("question", "answer")
    ),
    HubSource(
        "squad_v2", "factual_qa", "rajpurkar/squad_v2", "squad_v2/train-*.parquet", "cc-by-sa-4.0",
        130_319, _passage_question,
    ),
    HubSource(
        "hotpot_qa", "factual_qa", "hotpotqa/hotpot_qa", "distractor/train-*.parquet", "cc-by-sa-4.0",
        90_447, _many_paragraphs,
    ),
    HubSource(
        "nq_open", "factual_qa", "google-research-datasets/nq_open", "nq_open/train-*.parquet", "cc-by-sa-3.0",
        87_925, _first_answer,
    ),
    HubSource(
        "trivia_qa", "factual_qa", "mandarjoshi/trivia_qa", "rc.nocontext/train-*.parquet",
        "not stated on its card", 138_384, _first_answer,
    ),
)  # fmt: skip
