#!/usr/bin/env bash
# The main job, small: train an instruction model, evaluate it, compare it with what needs no learning, and let it answer a
# question. Takes the tokenizer and corpus that are there; without them it takes questions of the built-in corpus
# (config/recipe/smoke.yaml), which needs neither network nor files.
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

if [ -f "$tokenizer" ] && $has_corpus; then
    echo "[smoke] corpus in $data_dir, tokenizer $tokenizer" >&2
    question="What is 7 plus 8?"
    overrides=("dataset.source=local" "dataset.data_dir=$data_dir" "dataset.tokenizer_path=$tokenizer" "lr_warmup_steps=10")
    # 256 records of that corpus fill some 16 batches.
    overrides+=("dataset.subset_size=256" "dataset.seq_len=512" "dataset.test_ratio=0.05" "global_batch_size=8" "epochs=8")
    if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        echo "[smoke] no CUDA device: taking the small arch=trm_tiny" >&2
        overrides=("arch=trm_tiny" "${overrides[@]}" "lr=1e-3")
    fi
else
    [ -f "$tokenizer" ] || echo "[smoke] no tokenizer at $tokenizer" >&2
    $has_corpus || echo "[smoke] no SlimOrca.jsonl or SlimOrca.jsonl.zst in $data_dir" >&2
    echo "[smoke] taking the built-in sample corpus" >&2
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # a model this small gains nothing from more
    question="Write c o r n backwards." # held out: no question about this word stands in the training records
    overrides=("recipe=smoke" "dataset.data_dir=${SMOKE_DATA_DIR:-data/sample}")
fi
overrides+=(
    ${SMOKE_SUBSET_SIZE:+"dataset.subset_size=$SMOKE_SUBSET_SIZE"}
    ${SMOKE_SEQ_LEN:+"dataset.seq_len=$SMOKE_SEQ_LEN"}
    ${SMOKE_TEST_RATIO:+"dataset.test_ratio=$SMOKE_TEST_RATIO"}
    ${SMOKE_GLOBAL_BATCH:+"global_batch_size=$SMOKE_GLOBAL_BATCH"}
    ${SMOKE_EPOCHS:+"epochs=$SMOKE_EPOCHS"}
)

# Where the run will be, whatever overrides say about its name.
folder="" project=SlimOrca-ACT run_name=smoke-$(date +%Y%m%d-%H%M%S)-$$
for word in "$@"; do
    case ${word#+} in
        checkpoint_path=*) folder=${word#*=} ;;
        project_name=*) project=${word#*=} ;;
        run_name=*) run_name=${word#*=} ;;
    esac
done
folder=${folder:-checkpoints/$project/$run_name}

"$python" pretrain_instruct.py "${overrides[@]}" "run_name=$run_name" "$@"

compared=$("$python" scripts/bigram_baseline.py --checkpoint "$folder")
"$python" - "$compared" <<'SHOW'
import json
import sys

found = json.loads(sys.argv[1])
model, similar, bigrams = found["model"], found["similar_question"], found["bigram_of_answers"]
print(
    f"held-out exact accuracy {model['exact_accuracy']:.3f} on {similar['questions']} questions "
    f"(answering as the most similar training question: {similar['exact_accuracy']:.3f}); "
    f"token_loss {model['token_loss']:.3f} (bigrams: {bigrams['token_loss']:.3f})"
)
SHOW

echo "[smoke] $question" >&2
"$python" generate_instruct.py --checkpoint "$folder" --message "$question" --system-message "" --max-output-tokens 32
