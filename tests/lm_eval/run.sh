#!/usr/bin/env bash
# EleutherAI's harness scores the demo model through /v1/completions, and its numbers are compared
# with scores asked for directly. Nothing is fetched but the packages.
# Usage: tests/lm_eval/run.sh PATH/TO/nemoserve
set -euo pipefail
binary="$(realpath "$1")"
cd "$(dirname "$0")"
source ../clients/lib.sh

python="$(python_with lm_eval requirements.txt)"
start_server daemon "$binary" serve --listen
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HOME="$work/hf" OPENAI_API_KEY=unused
if ! "$python" -m lm_eval run --model local-completions \
    --model_args "model=nvidia/nemotron-3-super-120b-a12b,base_url=$url/v1/completions,tokenizer=../../server/demo/model,num_concurrent=4,max_length=4096" --batch_size 4 \
    --include_path tasks --tasks nemoserve_capitals,nemoserve_answers \
    --output_path "$work/results" --log_samples > "$work/lm_eval.log" 2>&1; then
    cat "$work/lm_eval.log" "$work/daemon.log"
    exit 1
fi
grep '^|' "$work/lm_eval.log"
"$python" compare.py "$url" "$work/results"
