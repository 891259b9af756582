#!/usr/bin/env bash
# Train a small instruction model on a small slice, evaluate it, and let it answer a question. Takes the tokenizer and corpus that are there;
# without them it takes the built-in sample corpus, which needs neither network nor files.
#
#   scripts/pretrain_instruct_smoke.sh                             everything by default
#   SMOKE_EPOCHS=2 scripts/pretrain_instruct_smoke.sh lr=3e-4      variables and Hydra overrides change the run
#
# SMOKE_SUBSET_SIZE  examples to train on            SMOKE_GLOBAL_BATCH  rows of a batch
# SMOKE_SEQ_LEN      positions of a row              SMOKE_EPOCHS        passes over the data
# SMOKE_TEST_RATIO   share of held-out examples      SMOKE_DATA_DIR      folder of SlimOrca.jsonl or .jsonl.zst
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python}
data_dir=${SMOKE_DATA_DIR:-data/slimorca}
tokenizer=${LLAMA_TOKENIZER:-tokenizers/llama-32k/tokenizer.model}
has_corpus=false
for file in "$data_dir/SlimOrca.jsonl" "$data_dir/SlimOrca.jsonl.zst"; do
    if [ -f "$file" ]; then has_corpus=true; fi
done

overrides=()
if [ -f "$tokenizer" ] && $has_corpus; then
    echo "[smoke] corpus in $data_dir, tokenizer $tokenizer" >&2
    subset=64 seq_len=512 batch=8 epochs=1 ratio=0.05
    overrides+=("dataset.source=local" "dataset.data_dir=$data_dir" "dataset.tokenizer_path=$tokenizer")
else
    [ -f "$tokenizer" ] || echo "[smoke] no tokenizer at $tokenizer" >&2
    $has_corpus || echo "[smoke] no SlimOrca.jsonl or SlimOrca.jsonl.zst in $data_dir" >&2
    echo "[smoke] taking the built-in sample corpus" >&2
    subset=8000 seq_len=128 batch=32 epochs=3 ratio=0.05
    overrides+=("dataset.source=sample" "dataset.data_dir=${SMOKE_DATA_DIR:-data/sample}" "lr=3e-3" "lr_warmup_steps=20")
fi
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "[smoke] no CUDA device: taking the small arch=trm_tiny" >&2
    overrides=("arch=trm_tiny" "${overrides[@]}")
fi

# Where the run will be, whatever overrides say about its name.
folder="" project=SlimOrca-ACT run_name=smoke-$(date +%Y%m%d-%H%M%S)-$$
for word in "$@"; do
    case ${word#+} in
        checkpoint_path=*) folder=${word#*=} ;;
        project_name=*) project=${word#*=} ;;
        run_name=*) run_name=${word#*=} ;;
    esac
done

"$python" pretrain_instruct.py \
    "${overrides[@]}" \
    "dataset.subset_size=${SMOKE_SUBSET_SIZE:-$subset}" \
    "dataset.seq_len=${SMOKE_SEQ_LEN:-$seq_len}" \
    "dataset.test_ratio=${SMOKE_TEST_RATIO:-$ratio}" \
    "global_batch_size=${SMOKE_GLOBAL_BATCH:-$batch}" \
    "epochs=${SMOKE_EPOCHS:-$epochs}" \
    "run_name=$run_name" \
    "$@"

question="What is 7 plus 8?"
echo "[smoke] $question" >&2
"$python" generate_instruct.py --checkpoint "${folder:-checkpoints/$project/$run_name}" \
    --message "$question" --system-message "" --max-output-tokens 32
