#!/usr/bin/env bash
# Build data/example-chat-dataset, a data set of five conversations, with a tokenizer trained on them: needs no network.
#
#   cd examples && ./prepare_example_chat_dataset.sh                      from here or from any other folder
#   examples/prepare_example_chat_dataset.sh --max-length 128 --pack      flags of the builder change it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

"${PYTHON:-python}" -m dataset.build_chat_dataset \
    --input-file examples/chat_conversations.json \
    --output-dir data/example-chat-dataset \
    --format sharegpt \
    --tokenizer train:400 \
    --max-length 256 \
    --train-split 0.8 \
    --seed 4 \
    --overwrite \
    "$@"
