"""From what Hydra has composed to the job that was asked for."""

from typing import Any

from engine.build.jobs import ChatJob, InstructJob, PuzzleJob
from engine.build.text import data_row_length
from engine.config.check import check
from engine.config.compose import resolved
from engine.config.schema import PretrainConfig
from engine.config.text import ChatConfig, InstructConfig
from engine.runtime.devices import ranks_from_environment
from engine.train.tracking.tracker import Notices


def typed(hydra_config: Any) -> tuple[dict[str, Any], str, set[str]]:
    """What `resolved` returns; a default batch gives way to the number of ranks and passes that share it."""
    data, arch_label, given = resolved(hydra_config)
    size, passes = data.get("global_batch_size"), data.get("gradient_accumulation_steps")
    rank, ranks, _ = ranks_from_environment()
    if not isinstance(size, int) or not isinstance(passes, int) or passes < 1:
        return data, arch_label, given  # the check says what is wrong
    if "global_batch_size" not in given and size % (passes * ranks):
        fitting = max(size // (passes * ranks), 1) * passes * ranks
        Notices(rank == 0)(
            f"note: the default global_batch_size={size} cannot be shared by {ranks} ranks x "
            f"gradient_accumulation_steps={passes}; taking {fitting}"
        )
        data["global_batch_size"] = fitting
    return data, arch_label, given


def puzzle_or_chat_job(hydra_config: Any) -> PuzzleJob | ChatJob:
    """What `pretrain.py` was asked for."""
    data, arch_label, given = typed(hydra_config)
    if data.get("dataset_type") != "chat":
        return PuzzleJob(check(PretrainConfig, data), arch_label, given)
    return ChatJob(chat_config(data), arch_label, given)


def chat_config(data: dict[str, Any]) -> ChatConfig:
    """`arch.seq_len`, as chat users write it, says how long rows are, which is a matter of the data."""
    arch = dict(data["arch"])
    seq_len = arch.pop("seq_len", None)
    if data.get("seq_len") is None:
        data = data | {"seq_len": seq_len}
    config = check(ChatConfig, data | {"arch": arch})
    if config.seq_len is None:
        config = config.model_copy(update={"seq_len": data_row_length(config.data_paths)})
    return config


def instruct_job(hydra_config: Any) -> InstructJob:
    """What `pretrain_instruct.py` was asked for."""
    data, arch_label, given = typed(hydra_config)
    return InstructJob(check(InstructConfig, data, given), arch_label, given)
