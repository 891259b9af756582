"""Builds the parts of a distillation: corpora, student, teacher and optimizers."""

from collections.abc import Iterable
from typing import Any

import torch

from dataset.common import LoaderItem, text_metadata
from dataset.cursor import RowDataset
from engine.build.loader import load_batches, train_items
from engine.build.puzzles import build_recursive_model
from engine.checkpoints.run_directory import to_yaml
from engine.config.schema import ArchChoice
from engine.runtime.devices import Runtime
from engine.train.loop import RunData
from engine.train.muon import MuonOptions
from engine.train.network_optimizer import network_optimizer
from engine.train.optimizers import OptimizerSet
from engine.train.schedule import RestartSchedule
from models.act import ActModel
from models.losses.distill import Divergence
from models.retnet.config import FIRST_LOGIT_STD
from models.retnet.model import RetNet
from src.distillation.config import DistillConfig
from src.distillation.corpus.corpora import HELD_OUT, Corpora
from src.distillation.corpus.manifest import SPLITS, TokenizerFacts
from src.distillation.student.haystack import NeedleEvaluator
from src.distillation.student.head import DistillHead
from src.distillation.student.saddle import PlateauController
from src.distillation.targets.signal import Teacher
from src.distillation.teachers.cached import CachedTeacher
from src.distillation.teachers.open import open_teacher

DIVERGENCE_BETAS = {"forward_kl": 0.0, "reverse_kl": 1.0}


def passes_of_rank(rows_per_step: int, at_once: int, ranks: int) -> int:
    """Into how many equal passes of at most so many rows a rank splits its share of an optimizer step."""
    rows, left = divmod(rows_per_step, ranks)
    if left:
        raise ValueError(
            f"physical_batch_size x gradient_accumulation_steps: {rows_per_step} rows a step cannot be shared equally by "
            f"{ranks} ranks. Take a multiple of {ranks}."
        )
    return next(number for number in range(-(-rows // at_once), rows + 1) if rows % number == 0)


def build_student(
    config: DistillConfig, arch: dict[str, Any], tokenizer: TokenizerFacts, runtime: Runtime
) -> DistillHead:
    metadata = text_metadata(config.max_seq_length, tokenizer.vocab_size, tokenizer.pad_id)
    model = build_recursive_model(ArchChoice.model_validate(arch), metadata, config.physical_batch_size)
    if not isinstance(model, RetNet) and not model.config.tie_embeddings:
        with torch.no_grad():  # a fresh student guesses evenly, as a RetNet does by itself
            model.inner.lm_head.weight.mul_(FIRST_LOGIT_STD)
    beta = DIVERGENCE_BETAS.get(config.divergence, config.jsd_beta)
    divergence = Divergence(beta=beta, temperature=config.teacher_temperature, tail=config.tail)
    return DistillHead(model, config.distill_alpha, divergence).to(runtime.device)


def teacher_of(config: DistillConfig, corpora: Corpora, runtime: Runtime) -> Teacher | None:
    if config.pretrain_ce_only:
        return None
    if config.teacher_device == "auto":
        config = config.model_copy(update={"teacher_device": str(runtime.device)})
    return open_teacher(config, corpora.manifest)


def coverage(teacher: Teacher | None, corpora: Corpora) -> list[str]:
    """How many rows of the corpus a cache holds, in words; refused if it lacks some to train on and nobody else is asked."""
    if not isinstance(teacher, CachedTeacher):
        return []
    counts = []
    for split in SPLITS:
        row_ids = corpora.manifest.row_ids(split)
        missing = teacher.missing(row_ids)
        if split == "train" and not teacher.asks_for_missing:
            teacher.refuse(missing)
        counts.append(f"{len(row_ids) - len(missing)} of {len(row_ids)} rows of {split}")
    return [f"cache: {', '.join(counts)}"]


def knows_held_out(config: DistillConfig, corpora: Corpora) -> bool:
    """Whether the teacher may be asked about held-out rows: a cache knows the rows of one corpus by their numbers."""
    has_cache = config.teacher_mode == "cached" or config.cache_logits
    return not has_cache or corpora.held_out_fingerprint == corpora.manifest.fingerprint


def missing_held_out(teacher: Teacher | None, corpora: Corpora) -> int:
    """How many of the held-out rows that are read a cache lacks, while nobody else is asked."""
    if not isinstance(teacher, CachedTeacher) or teacher.asks_for_missing:
        return 0
    return len(teacher.missing(corpora.held_out_ids))


def take_over(config: DistillConfig, student: ActModel) -> list[str]:
    """Start from weights of the teacher; returns what was copied."""
    from src.distillation.student.transfer import init_from_teacher
    from src.distillation.teachers.causal_lm import load_causal_lm

    assert config.teacher_model is not None
    teacher = load_causal_lm(config.teacher_model, dtype=torch.float32, adapter_path=config.teacher_adapter_path)
    return init_from_teacher(student, teacher, config.init_from_teacher)


def checkpoint_yaml(config: DistillConfig, arch: dict[str, Any]) -> str:
    """What programs that open any text model read, such as generate_instruct.py and serve.py.

    `source: sample` because no system prompt of SlimOrca belongs before a message.
    """
    return to_yaml(
        {
            "arch": arch,
            "dataset": {"source": "sample", "seq_len": config.max_seq_length},
            "global_batch_size": config.physical_batch_size,
            "epochs": 1,
            "lr": config.learning_rate,
            "seed": config.seed,
        }
    )


def student_optimizers(config: DistillConfig, head: DistillHead, controller: PlateauController | None) -> OptimizerSet:
    network = network_optimizer(
        config.optimizer_type,
        head,
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        muon=MuonOptions(config.muon_momentum, config.muon_aux_lr_scale),
    )
    per_step = config.gradient_accumulation_steps
    schedule = RestartSchedule(
        warmup_steps=config.warmup_batches // per_step,
        plateau_steps=config.plateau_batches // per_step,
        cosine_steps=config.cosine_t0,
        cosine_growth=config.cosine_tmult,
        min_lr=config.min_lr,
        factor=None if controller is None else controller.factor,
    )
    return OptimizerSet(network, config.learning_rate, None, 0.0, schedule)


def run_data(config: DistillConfig, corpora: Corpora, head: DistillHead, runtime: Runtime) -> RunData:
    held_out = corpora.held_out if config.eval_perplexity else None
    evaluators = needle_evaluators(config, corpora, head)
    is_evaluated = config.eval_interval > 0 and (bool(evaluators) or held_out is not None)
    return RunData(
        train_items=train_items(corpora.train, config.num_workers, runtime, own_generator=True),
        eval_items=(lambda: held_out_items(held_out, config, runtime)) if is_evaluated else None,
        num_eval_batches=0 if held_out is None else held_out.num_batches(),
        eval_sets=[HELD_OUT],
        evaluators=evaluators,
    )


def held_out_items(dataset: RowDataset | None, config: DistillConfig, runtime: Runtime) -> Iterable[LoaderItem]:
    """Batches of what is evaluated; of no data set none."""
    return () if dataset is None else load_batches(dataset, config.num_workers, runtime, own_generator=True)


def needle_evaluators(config: DistillConfig, corpora: Corpora, head: DistillHead) -> list[NeedleEvaluator]:
    if not config.eval_niah:
        return []
    whole = config.max_seq_length
    lengths = config.eval_niah_lengths or [whole // 4, whole // 2, whole]
    return [NeedleEvaluator(head.model, corpora.tokenizer, lengths, config.eval_niah_samples, config.seed)]
