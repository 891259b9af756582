"""Turns a checked config into data, model, task and optimizers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from dataset.common import PuzzleDatasetMetadata
from dataset.puzzles.disguises import Disguises
from dataset.puzzles.mixing import differences, identifier_offsets
from dataset.puzzles.reader import VALIDATION_SET, PuzzleDataset, PuzzleDatasetConfig
from dataset.puzzles.rules import rule_of
from dataset.puzzles.samples import known_game
from engine.build.loader import load_batches, train_items
from engine.checkpoints.load import Checkpoint
from engine.config.check import check
from engine.config.registry import load_model_class
from engine.config.schema import ArchChoice, EvalConfig, PretrainConfig, RunConfig
from engine.runtime.devices import Runtime, keep_freed_memory
from engine.tasks.puzzles import PuzzleTask
from engine.tasks.rollouts import Effort
from engine.train.evaluate import Evaluator
from engine.train.loop import RunData
from engine.train.muon import MuonOptions
from engine.train.network_optimizer import network_optimizer
from engine.train.optimizers import OptimizerSet
from engine.train.schedule import DecaySchedule
from engine.train.update_rules import SparseSignSGD
from models.act import ActModel
from models.losses.puzzles import ACTLossHead
from models.losses.text import TextLossHead


def build_model(arch: ArchChoice, metadata: PuzzleDatasetMetadata, rows: int, runtime: Runtime) -> ACTLossHead:
    """The loss head around the model, on its device, with the same weights on every rank."""
    if runtime.device.type == "cpu":
        keep_freed_memory(2**30)  # boards of a data set are all of one size, so whatever was freed fits again
    head_class: type[ACTLossHead] = load_model_class(arch.loss.name)
    model = build_recursive_model(arch, metadata, rows)
    head = head_class(model, **arch.loss.model_dump(exclude={"name"})).to(runtime.device)
    runtime.broadcast_([*head.parameters(), *head.buffers()])
    return head


def build_recursive_model(arch: ArchChoice, metadata: PuzzleDatasetMetadata, rows: int) -> ActModel:
    data_facts = {
        "batch_size": rows,
        "seq_len": metadata.seq_len,
        "vocab_size": metadata.vocab_size,
        "num_puzzle_identifiers": metadata.num_puzzle_identifiers,
    }
    model_class: type[ActModel] = load_model_class(arch.name)
    return model_class(arch.options | data_facts)


def build_task(
    config: PretrainConfig, head: ACTLossHead, metadata: PuzzleDatasetMetadata, runtime: Runtime, total_steps: int
) -> PuzzleTask:
    effort = build_effort(config.eval, config.seed, metadata, ", ".join(config.data_paths))
    rule = rule_of(known_game(metadata))
    return PuzzleTask(head, runtime, config.seed, config.gradient_accumulation_steps, total_steps, effort, rule)


def build_effort(tries: EvalConfig, seed: int, metadata: PuzzleDatasetMetadata, where: str) -> Effort:
    """How hard to try puzzles of the data that `where` names."""
    disguise = Disguises(metadata, where).draw if tries.disguises else None
    return Effort(tries.halt_max_steps, tries.rollouts, tries.noise, seed, disguise, tries.by_step, tries.choose)


def build_optimizers(
    config: RunConfig, head: ACTLossHead | TextLossHead, runtime: Runtime, total_steps: int
) -> OptimizerSet:
    """The puzzle table's optimizer and the network's; frozen weights have none."""
    schedule = DecaySchedule(
        config.lr_warmup_steps, total_steps, config.lr_min_ratio, is_linear=config.lr_decay == "linear"
    )
    table = head.model.puzzle_emb
    sparse = None
    if table is not None:
        sparse = SparseSignSGD(table, 0.0, config.puzzle_emb_weight_decay, gather=runtime.all_gather_rows)
    if config.freeze_weights:
        if sparse is None:
            raise ValueError("freeze_weights=true needs a puzzle embedding to train. Set arch.puzzle_emb_ndim.")
        for parameter in head.parameters():
            parameter.requires_grad_(False)
        return OptimizerSet(None, 0.0, sparse, config.puzzle_emb_lr, schedule)
    network = network_optimizer(
        config.optimizer,
        head,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        decays_embeddings=config.weight_decay_embeddings,
        muon=MuonOptions(config.muon_momentum, config.muon_aux_lr_scale, config.muon_aux_weight_decay),
    )
    return OptimizerSet(network, config.lr, sparse, config.puzzle_emb_lr, schedule)


def puzzle_config(loaded: Checkpoint) -> PretrainConfig:
    """What a checkpoint says it was trained with."""
    data = loaded.config()
    if data is None:
        raise ValueError(
            f"{loaded.path} carries no config, so its architecture is not known. Give a step folder or a run folder of "
            "this project, or put the all_config.yaml of the reference beside the file."
        )
    arch = data.get("arch")
    if not isinstance(arch, dict):
        raise ValueError(f"The config of {loaded.path} names no architecture (arch). Use another checkpoint.")
    loss = arch.get("loss")
    if isinstance(loss, dict) and str(loss.get("name")).endswith("TextLossHead"):
        raise ValueError(f"{loaded.path} is a model of text, not of puzzles. Give a puzzle checkpoint.")
    return check(PretrainConfig, data)


@dataclass(frozen=True)
class Source:
    """Training and held-out data of a run."""

    metadata: PuzzleDatasetMetadata
    data: RunData
    total_steps: int
    iterations: int
    steps_per_epoch: float
    batches_of: Callable[[int], float]  # an epoch, counted from 0
    train_rows: int  # of an epoch
    train_tokens: int  # of an epoch
    files: Sequence[Path] = ()  # to be kept with every checkpoint
    meta: dict[str, Any] = field(default_factory=dict)  # facts to be kept with every checkpoint


def build_puzzles(config: PretrainConfig, runtime: Runtime) -> Source:
    """Open the data sets; held out are the `test` splits of the training folders, if any, unless others are named, and
    the puzzles of a validation split, which then choose the best checkpoint alone."""
    check_batch_shares(config, runtime)
    share = config.eval.validation_split
    train = open_puzzles(config, runtime, "train", config.data_paths, in_order=config.eval_only)
    held_out = config.data_paths_test or [path for path in config.data_paths if (Path(path) / "test").is_dir()]
    test = open_puzzles(config, runtime, "test", held_out, in_order=True) if held_out else None
    validation = open_puzzles(config, runtime, "train", config.data_paths, in_order=True) if share else None
    held = [reader for reader in (test, validation) if reader is not None]
    test_sets = [] if test is None else test.metadata.sets
    best_sets = [] if validation is None else [VALIDATION_SET]
    if test is not None:
        check_fit(config, train.metadata, test.metadata, held_out)
    if set(best_sets) & set(test_sets):
        raise ValueError(
            f"{', '.join(held_out)}: a test set is called '{VALIDATION_SET}', the name of the puzzles that "
            f"eval.validation_split={share:g} holds out. Set it to 0, or give that set another name."
        )
    metadata = train.metadata
    rows = metadata.total_groups * metadata.mean_puzzle_examples
    estimate = config.epochs * rows / config.global_batch_size
    total_steps = min(int(estimate), config.max_steps or int(estimate))

    workers = config.dataloader_workers
    return Source(
        metadata=metadata,
        data=RunData(
            train_items=train_items(train, workers, runtime),
            eval_items=(lambda: chain.from_iterable(load_batches(r, workers, runtime) for r in held)) if held else None,
            num_eval_batches=sum(reader.num_batches() for reader in held),
            eval_sets=[*test_sets, *best_sets],
            best_sets=best_sets,
            evaluators=() if test is None else build_evaluators(config, held_out, test.metadata),
            checksum=sum(reader.checksum() for reader in (train, *held)),
        ),
        meta={"data": metadata.model_dump(include={"seq_len", "vocab_size", "num_puzzle_identifiers"})},
        total_steps=max(total_steps, 1),
        iterations=config.iterations,
        steps_per_epoch=rows / config.global_batch_size,
        batches_of=lambda epoch: rows / config.global_batch_size,
        train_rows=round(rows),
        train_tokens=round(rows * metadata.seq_len),
    )


def check_batch_shares(config: RunConfig, runtime: Runtime) -> None:
    shares = runtime.world_size * config.gradient_accumulation_steps
    if config.global_batch_size % shares:
        raise ValueError(
            f"global_batch_size={config.global_batch_size} cannot be shared equally by {runtime.world_size} ranks x "
            f"gradient_accumulation_steps={config.gradient_accumulation_steps}. Take a multiple of {shares}, for example "
            f"global_batch_size={-(-config.global_batch_size // shares) * shares}."
        )


def check_fit(
    config: PretrainConfig, trained: PuzzleDatasetMetadata, tested: PuzzleDatasetMetadata, paths: Sequence[str]
) -> None:
    """Refuse test data that the model could not read, before the run and not at its first evaluation."""
    problem = differences(trained, tested)
    ours, theirs = trained.num_puzzle_identifiers, tested.num_puzzle_identifiers
    if not problem and theirs > ours and config.arch.options.get("puzzle_emb_ndim"):
        problem = f"{theirs} puzzle identifiers, while the model has embeddings of {ours}"
    if problem:
        raise ValueError(
            f"What is trained on {', '.join(config.data_paths)} cannot be tested on {', '.join(paths)}: {problem}. "
            "Name data sets in data_paths_test that were built like those of data_paths."
        )


def open_puzzles(
    config: PretrainConfig, runtime: Runtime, split: str, paths: list[str], *, in_order: bool
) -> PuzzleDataset:
    """A reader of a split; of the training split either what is trained on or, in order, what is held out."""
    return PuzzleDataset(
        PuzzleDatasetConfig(
            dataset_paths=paths,
            identifier_paths=identifier_paths(config, paths),
            global_batch_size=config.global_batch_size,
            test_set_mode=in_order,
            epochs_per_iter=config.epochs_per_iteration,
            epochs=config.epochs,
            seed=config.seed,
            rank=runtime.rank,
            num_replicas=runtime.world_size,
            validation_split=config.eval.validation_split if split == "train" else 0.0,
            disguises=config.disguises,
        ),
        split=split,
    )


def identifier_paths(config: PretrainConfig, paths: Sequence[str]) -> list[str]:
    """The data sets whose puzzle identifiers are numbered together: those of the training where that is possible."""
    return config.data_paths if set(paths) <= set(config.data_paths) else list(paths)


def build_evaluators(
    config: PretrainConfig, paths: Sequence[str], metadata: PuzzleDatasetMetadata
) -> Sequence[Evaluator]:
    make: Callable[..., Evaluator]
    evaluators = []
    offsets = identifier_offsets(identifier_paths(config, paths)) if config.evaluators else {}
    for choice in config.evaluators:
        make = load_model_class(choice.name, "evaluators.")
        for path in paths:
            shift = {"identifier_offset": offsets[path]} if offsets[path] else {}
            evaluators.append(make(data_path=path, eval_metadata=metadata, **choice.options, **shift))
    return evaluators
