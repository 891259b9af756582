"""Every command of the chat guide is typed here, on a small scale, without a network."""

import json
import re
import shlex
import shutil
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.test_docs import documented_commands, serving, typed
from tests.tiny import ROOT

GUIDE = ROOT / "docs" / "chat.md"
TINY = [
    "arch.hidden_size=32",
    "arch.num_heads=2",
    "arch.L_layers=1",
    "arch.H_cycles=1",
    "arch.L_cycles=1",
    "global_batch_size=4",
    "epochs=2",
    "eval_interval=2",
    "max_steps=2",
    "device=cpu",
    "compile=false",
]
NETWORK = {
    "<master_addr>:<master_port>": "localhost:0", "<total_nodes>": "1", "<this_node_rank>": "0",
    "--nproc-per-node 8": "--nproc-per-node 2", "--nproc-per-node 4": "--nproc-per-node 2",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The repository's files, and whatever the commands make."""
    folder = tmp_path_factory.mktemp("guide")
    for entry in ROOT.iterdir():
        if entry.name not in ("data", "checkpoints", "tokenizers", "examples", ".git", ".venv", "wandb"):
            (folder / entry.name).symlink_to(entry)
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


def small(command: str, place: Path) -> list[str]:
    for asked, here in NETWORK.items():
        command = command.replace(asked, here)
    words = shlex.split(command.replace("./prepare", "examples/prepare"))
    if "build_chat_dataset" in command:
        words[words.index("--input-file") + 1] = "examples/chat_conversations.json"
        words[words.index("--tokenizer") + 1] = "train:400"
        words[words.index("--train-split") + 1] = "0.8"
        words += ["--max-length", "128", "--seed", "4"]
    if "cfg_chat" in command:
        words += [
            *TINY,
            f"project_name={'Chat-dataset-ACT-torch'}",
            f"run_name=trm_chat-{len(list(place.rglob('latest')))}",
        ]
    if "generate.py" in command or "serve.py" in command:
        words[words.index("--checkpoint") + 1] = "checkpoints/Chat-dataset-ACT-torch/trm_chat-*/latest"
        words += ["--port", "0"] if "serve.py" in command else []
        words = [word if word != "100" else "5" for word in words]
    return words


@pytest.mark.timeout(600)
def test_every_command_of_the_guide_works(place):
    ran = []
    for command in documented_commands([GUIDE]):
        if command.startswith("cd "):
            continue
        words = small(re.sub(r"^(?:[A-Z_]+=\S+ )*", "", command), place)
        if "serve.py" in command:
            with serving(words, place) as address, urlopen(f"{address}/v1/models", timeout=20) as answer:
                assert json.load(answer)["data"][0]["id"].startswith("trm_chat-")
        else:
            done = typed(words, place, stdin="Hello\n/quit\n")
            assert done.code == 0, f"{command}\n{shlex.join(words)}\n{done.err[-3000:]}"
        ran.append(command)
    for word in (
        "prepare_example",
        "build_chat_dataset",
        "--config-name cfg_chat",
        "torchrun",
        "--interactive",
        "serve.py",
    ):
        assert any(word in command for command in ran), word


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_model_of_the_example_repeats_the_replies_it_was_taught(place):
    """The commands as they stand, with the size and the length that they have by default."""
    commands = [c for c in documented_commands([GUIDE]) if re.search("example-chat-dataset|prepare_example", c, re.I)]
    assert len(commands) == 3, commands
    for command in commands[:2]:
        words = shlex.split(command.replace("./prepare", "examples/prepare"))
        done = typed(words, place, timeout=3000)
        assert done.code == 0, done.err[-3000:]
    words = shlex.split(commands[2])
    (checkpoint,) = place.glob(words[words.index("--checkpoint") + 1])
    ask = ["python", "generate.py", "--checkpoint", str(checkpoint), "--temperature", "0.7", "--interactive"]
    num_repeated = 0
    for record in json.loads((place / "examples" / "chat_conversations.json").read_text()):
        turns = record["conversations"]
        said = [
            f"/system {turn['value']}" if turn["from"] == "system" else turn["value"]
            for turn in turns
            if turn["from"] != "gpt"
        ]
        answered = typed([*ask, "--seed", "0"], place, stdin="\n".join([*said, "/quit\n"])).out
        num_repeated += all(turn["value"] in answered for turn in turns if turn["from"] == "gpt")
    assert num_repeated == 4  # the fifth conversation is held out
