"""Weights of a teacher in a student: that they mean there what they meant before, and what does not fit."""

import pytest
import torch
from torch import Tensor

from models.kernels import rotate
from src.distillation.student.transfer import SIZE_OF_AVERAGE, _chosen, init_from_teacher
from tests.distillation.teacher_samples import llama_config
from tests.models.small import make
from tests.models.small_retnet import hidden_of, make_ids, make_model

VOCAB, WIDTH, LAYERS = 40, 32, 3
ALL = ["embed", "mlp", "norms", "qkvo"]
FITTING = {"num_heads": 4, "H_layers": LAYERS, "expansion": 12, "value_expansion": 1, "tie_embeddings": False}
IDS = make_ids(rows=3)


def make_teacher(seed: int = 0, **changes):
    """A Llama whose norms have learnt something."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "rms_norm_eps": 1e-5}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = LlamaForCausalLM(llama_config(**(sizes | tokens | {"initializer_range": 0.3} | changes))).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.3, 1.5)
    return model


def logits_of(student) -> Tensor:
    return student.inner.lm_head(hidden_of(student, IDS))


def rms(x: Tensor) -> float:
    return x.detach().square().mean().sqrt().item()


def looked_up_size(student) -> float:
    return student.config.embed_scale * rms(student.inner.embed_tokens.embedding_weight)


@torch.no_grad()
def without_mixing(student, teacher) -> None:
    """No position sees another one: what remains is embedding, norms, feed-forward layers and head."""
    for block in student.inner.retention_level.layers:
        block.retention.o_proj.weight.zero_()
    for block in teacher.model.layers:
        block.self_attn.o_proj.weight.zero_()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("width", [512, 400])
def test_all_but_mixing_gives_the_teachers_logits(tied, width):
    """Also where a student's feed-forward layers are rounded up."""
    teacher = make_teacher(tie_word_embeddings=tied, intermediate_size=width)
    student = make_model(**(FITTING | {"tie_embeddings": tied, "expansion": 24}))
    told = init_from_teacher(student, teacher, ["embed", "mlp", "norms"])
    without_mixing(student, teacher)
    torch.testing.assert_close(logits_of(student), teacher(IDS).logits, rtol=1e-3, atol=1e-3)
    assert [line.split(":")[0] for line in told] == ["from the teacher"] * 3
    assert looked_up_size(student) == pytest.approx(1.0), "what is looked up has the size that students expect"


def test_queries_and_keys_meet_as_in_the_teacher():
    """With shared key heads, on the same normed states: the products that attention takes the softmax of."""
    teacher, student = make_teacher(), make_model(**FITTING)
    init_from_teacher(student, teacher, ALL)
    block, source = student.inner.retention_level.layers[1], teacher.model.layers[1]
    x = torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(0))
    rope = student.inner._rope(torch.arange(9))
    qk, v, _ = block.retention.qkvg_proj(x).split(block.retention.widths, dim=-1)
    q, k = rotate(qk.unflatten(-1, (8, -1)), rope.cos, rope.sin).chunk(2, dim=2)
    found = torch.einsum("blnh,bmnh->bnlm", q, k)

    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

    attention = source.self_attn
    heads = [
        p(x).unflatten(-1, (-1, 8)).transpose(1, 2) for p in (attention.q_proj, attention.k_proj, attention.v_proj)
    ]
    turned = apply_rotary_pos_emb(heads[0], heads[1], *teacher.model.rotary_emb(x, torch.arange(9)[None]))
    expected = turned[0] @ repeat_kv(turned[1], 2).transpose(-1, -2) * 8**-0.5
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    values = repeat_kv(heads[2], 2).transpose(1, 2)
    torch.testing.assert_close(v.unflatten(-1, (4, -1)), values)


def test_a_position_that_sees_itself_alone_answers_with_the_size_of_an_average_of_values():
    teacher, student = make_teacher(), make_model(**FITTING)
    init_from_teacher(student, teacher, ALL)
    sizes = []
    gain = looked_up_size(student) / rms(teacher.model.embed_tokens.weight)
    for module in (student.inner.retention_level.layers[0].retention, teacher.model.layers[0].self_attn):

        def remember(module, given, out):
            answer = out if isinstance(out, Tensor) else out[0]
            sizes.append(rms(answer[:, 0]))

        module.register_forward_hook(remember)
    logits_of(student), teacher(IDS)
    assert sizes[0] / sizes[1] == pytest.approx(gain * SIZE_OF_AVERAGE, rel=0.5)


def test_parts_that_are_not_named_stay_the_students_own():
    teacher, student, fresh = make_teacher(), make_model(**FITTING), make_model(**FITTING)
    init_from_teacher(student, teacher, ["mlp"])
    changed = {
        name
        for (name, p), q in zip(student.named_parameters(), fresh.parameters(), strict=True)
        if not torch.equal(p, q)
    }
    expected = {
        f"inner.retention_level.layers.{n}.mlp.{m}_proj.weight" for n in range(LAYERS) for m in ("gate_up", "down")
    }
    assert changed == expected


def test_what_stays_the_students_own_sees_inputs_of_the_same_size():
    """Norms of a teacher may be far from 1; a gate that sees a tenth would let a tenth through."""
    teacher, student = make_teacher(), make_model(**FITTING)
    for block in teacher.model.layers:
        block.input_layernorm.weight.data.fill_(0.1)
    block = student.inner.retention_level.layers[0]
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0))
    before = block.retention.qkvg_proj(block.retention_norm(x))
    init_from_teacher(student, teacher, ["norms"])
    torch.testing.assert_close(block.retention.qkvg_proj(block.retention_norm(x)), before)


def test_blocks_are_taken_at_even_distances():
    assert _chosen(3, 3) == [0, 1, 2] and _chosen(2, 3) == [0, 2] and _chosen(1, 9) == [0]
    assert _chosen(4, 16) == [0, 5, 10, 15] and _chosen(6, 12) == [0, 2, 4, 7, 9, 11]
    teacher, student = make_teacher(), make_model(**(FITTING | {"H_layers": 2}))
    told = init_from_teacher(student, teacher, ["norms"])
    assert told == ["from the teacher: norms of blocks 0, 2 of 3, counted from 0, and the last"]
    last = student.inner.retention_level.layers[1].mlp_norm.weight
    assert torch.equal(last, teacher.model.layers[2].post_attention_layernorm.weight)


def test_a_recursive_student_takes_the_embedding_only():
    student = make("trm", causal=True, vocab_size=VOCAB, norm="pre")
    teacher = make_teacher()
    init_from_teacher(student, teacher, ["embed"])
    assert looked_up_size(student) == pytest.approx(1.0)
    assert torch.equal(student.inner.lm_head.weight, teacher.lm_head.weight)
    with pytest.raises(ValueError, match="embed only"):
        init_from_teacher(student, teacher, ["embed", "mlp"])


def test_a_larger_vocabulary_of_the_teacher_is_cut_off():
    teacher, student = make_teacher(vocab_size=VOCAB + 9), make_model(**FITTING)
    init_from_teacher(student, teacher, ["embed"])
    assert torch.equal(student.inner.lm_head.weight, teacher.lm_head.weight[:VOCAB])


def test_biases_that_have_no_place_are_told_of():
    teacher, student = make_teacher(attention_bias=True), make_model(**FITTING)
    assert "biases such as model.layers.0.self_attn.q_proj.bias" in init_from_teacher(student, teacher, ["qkvo"])[-1]


@pytest.mark.parametrize(
    ("teacher", "student", "parts", "told"),
    [
        ({}, {}, ["head"], "head"),
        ({}, {}, [], "no parts"),
        ({"hidden_size": 64}, {}, ["norms"], "hidden_size=64"),
        ({"vocab_size": 39}, {}, ["embed"], "39 tokens"),
        ({}, {"tie_embeddings": True}, ["embed"], "tie_embeddings=false"),
        ({}, {"H_layers": 4}, ["norms"], "H_layers=3"),
        ({"intermediate_size": 500}, {}, ["mlp"], "expansion=24"),
        ({"hidden_act": "gelu"}, {}, ["mlp"], "gelu"),
        ({}, {"value_expansion": 2}, ["qkvo"], "value_expansion=1"),
        ({}, {"num_heads": 2}, ["qkvo"], "num_heads=4"),
        ({"head_dim": 16}, {}, ["qkvo"], "size 16"),
        ({}, {"rope_theta": 500.0}, ["qkvo"], "rope_theta=10000"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_changed(teacher, student, parts, told):
    model = make_model(**(FITTING | student))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=f"init_from_teacher={','.join(parts)}: .*{told}"):
        init_from_teacher(model, make_teacher(**({"intermediate_size": 256} | teacher)), parts)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_another_kind_of_model_is_refused_with_the_known_ones():
    from transformers import GPT2Config, GPT2LMHeadModel

    teacher = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=WIDTH, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="gpt2"):
        init_from_teacher(make_model(**FITTING), teacher, ["embed"])
