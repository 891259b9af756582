import json
from argparse import Namespace

from lab.bench import commands

TINY = ["arch.hidden_size=32", "arch.num_heads=2", "arch.H_cycles=1", "arch.L_cycles=1", "compile=false", "device=cpu"]


def test_bench_train_counts_operations_and_compares_with_bare_products():
    args = Namespace(positions=9, vocab_size=7, rows=4, steps=1, depth=1, compare=False, profile=None)
    found = commands.train(args, ["arch=trm", "arch.puzzle_emb_ndim=0", "arch.puzzle_emb_len=0", *TINY])
    # 2 blocks: qkv, o, gate_up (2 x 256), down; forward once, backward twice, 2 calls; then head and attention
    linear = 2 * (3 * 32 * 32 + 32 * 32 + 3 * 256 * 32)
    assert found["flops_per_step"] > 2 * 36 * linear * 3 * 2
    assert found["flops_per_step"] < 2 * 36 * linear * 3 * 2 * 1.2
    assert found["ratio"] > 0 and found["peak_memory_bytes"] > 1e6
    assert found["steps_per_s"] > 0 and json.dumps(found)


def test_a_network_that_mixes_cells_by_an_mlp_is_timed_too():
    """Its products have expanded operands, whose rows share their memory."""
    args = Namespace(positions=9, vocab_size=7, rows=4, steps=1, depth=1, compare=False, profile=None)
    words = [
        "arch=trm",
        "arch.puzzle_emb_ndim=0",
        "arch.puzzle_emb_len=0",
        "arch.mlp_t=true",
        "arch.pos_encodings=none",
    ]
    assert commands.train(args, words + TINY)["ratio"] > 0


def test_bench_of_text_compares_with_the_plain_way():
    args = Namespace(positions=256, vocab_size=300, rows=2, steps=1, depth=1, compare=True, profile=None)
    found = commands.train(args, ["arch=trm_text", *TINY])
    assert found["real_tokens"] > found["plain"]["real_tokens"]
    assert found["speedup"] > 0 and found["supervision_steps"] == 1


def test_bench_load_prints_both_speeds(tmp_path, monkeypatch):
    monkeypatch.setenv("SLIMORCA_TQDM", "0")
    words = ["dataset.source=sample", f"dataset.data_dir={tmp_path}", "dataset.sample_size=300", "dataset.seq_len=64"]
    found = commands.load(Namespace(), [*words, "dataset.subset_size=null"])
    assert found["records"] == 300
    assert found["records_per_s"] > 0 and found["plain_records_per_s"] > 0
