"""Train a recursive model on puzzles, or with `--config-name cfg_chat` on conversations.

python pretrain.py recipe=sudoku_4x4
python pretrain.py arch=trm data_paths="[data/arc1concept-aug-1000]" global_batch_size=768 ema=true
"""

from typing import Any

from engine.entry import launch, show, user_errors


def main(config: Any) -> None:
    from engine.build.asked import puzzle_or_chat_job
    from engine.build.dry_run import dry_run  # late, so that --help needs no torch
    from engine.run import train

    with user_errors():
        job = puzzle_or_chat_job(config)
        show(dry_run(job) if job.config.dry_run else train(job))


if __name__ == "__main__":
    launch(main, "cfg_pretrain")
