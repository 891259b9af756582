"""Names of options: other spellings that are understood, and those that stand for something broken or gone."""

from typing import Any

# Other spellings that are understood.
ALIASES = {
    "lr": "learning_rate",
    "resume": "resume_from",
    "enable_wandb": "use_wandb",
    "wandb_run_name": "run_name",
}
# Keys of other versions of this wing that stand for something broken or gone, and what to do instead.
REFUSED = {
    "use_8bit_optimizer": "optimizer states are float32. Leave it out; the state of muon_hybrid is half that of adamw",
    "muon_grad_clip": "one norm is clipped, that of all gradients. Use max_grad_norm",
    "muon_zero_clip_percent": "no gradient is set to zero. Leave it out",
    "muon_ready_check": "there is nothing to get ready. Leave it out",
    "muon_clip_threshold": "it shrank queries and keys from the first step on. Leave it out; max_grad_norm bounds steps",
    "muon_clip_alpha": "it shrank queries and keys from the first step on. Leave it out; max_grad_norm bounds steps",
    "muon_clip_pairs": "it shrank queries and keys from the first step on. Leave it out; max_grad_norm bounds steps",
    "scheduler_type": "there is one schedule. Shape it with warmup_batches, plateau_batches, cosine_t0, cosine_tmult",
    "reverse_kl_warmup_steps": "the divergence stays the same over a run. Set divergence, and change it by resuming",
    "alpha_warmup_steps": "the share of cross-entropy stays the same. Set distill_alpha, and change it by resuming",
    "alpha_initial": "the share of cross-entropy stays the same. Set distill_alpha, and change it by resuming",
    "alpha_final": "the share of cross-entropy stays the same. Set distill_alpha, and change it by resuming",
    "temperature_warmup_steps": "the temperature stays the same. Set teacher_temperature",
    "temperature_initial": "the temperature stays the same. Set teacher_temperature",
    "temperature_final": "the temperature stays the same. Set teacher_temperature",
    "pretokenized_splits": "a corpus has the splits train and val. Preprocess what is wanted into a folder of its own",
    "max_total_size_gb": "checkpoints are counted, not weighed. Use keep_last_n",
    "async_teacher": "the teacher answers within the step. Take teacher_mode=cached to be independent of it",
    "force_async_teacher": "the teacher answers within the step. Take teacher_mode=cached to be independent of it",
    "hf_token": "secrets do not belong into a config. Set the environment variable HF_TOKEN",
    "api_key": "secrets do not belong into a config. Set the environment variable TEACHER_API_KEY",
}
REFUSED_SADDLE = {
    "min_loss_threshold": "what counts is how the loss moves, not how large it is. Leave it out",
    "log_to_wandb": "what the controller does is logged with the other metrics. Leave it out",
    "create_wandb_alerts": "what the controller does is logged with the other metrics. Leave it out",
}


def plain(data: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Options under their own names, and what is wrong with the names."""
    problems = [f"{key}: {REFUSED[key]}" for key in data if key in REFUSED]
    kept = {key: value for key, value in data.items() if key not in REFUSED and key not in ALIASES}
    for alias, name in ALIASES.items():
        if alias in data and name in data:
            problems.append(f"{alias} is another word for {name}. Give one of them")
        elif alias in data:
            kept[name] = data[alias]
    reverse = kept.pop("reverse_kl", None)
    if reverse not in (None, True, False):
        problems.append(f"reverse_kl: expected true or false, found {reverse!r}")
    elif reverse and kept.get("divergence", "reverse_kl") != "reverse_kl":
        problems.append(f"reverse_kl=true contradicts divergence={kept['divergence']}. Give one of them")
    elif reverse:
        kept["divergence"] = "reverse_kl"
    saddle = kept.get("saddle_escape")
    if isinstance(saddle, dict):
        problems += [f"saddle_escape.{key}: {REFUSED_SADDLE[key]}" for key in saddle if key in REFUSED_SADDLE]
        kept["saddle_escape"] = {key: value for key, value in saddle.items() if key not in REFUSED_SADDLE}
    return kept, problems
