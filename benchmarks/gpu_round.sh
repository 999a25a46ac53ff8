#!/usr/bin/env bash
# Everything that is measured on one H100, in one call of at most ten minutes; a short table is printed last.
#   gpu_round.sh BUNDLE OUT DATA [ROUNDS]     BUNDLE has env.tar.xz, llama3-tokenizer.model and make_llama3_8b.py
set -uo pipefail
bundle=$1 out=$2 data=$3 rounds=${4:-3} root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p /tmp/env "$out"
[ -d /tmp/env/site ] || tar xJf "$bundle/env.tar.xz" -C /tmp/env
export DISABLE_VERSION_CHECK=1 PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
export PYTHONPATH=$root:/tmp/env/site
[ -f /tmp/model/config.json ] || python3 "$bundle/make_llama3_8b.py" "$bundle/llama3-tokenizer.model" /tmp/model >"$out/model.log" 2>&1
cd "$root"
python3 benchmarks/gpu_kto.py --model /tmp/model --data "$data" --out "$out/gpu_kto.json" --trl /tmp/env/peer --rounds "$rounds" \
  --only "80 GB, accelerated" "80 GB, accelerated, reference kept by an earlier run" "TRL, batch 8" \
  "TRL, batch 8, reference precomputed" "batch 8" 2>&1 | tee "$out/round.log" | tail -30
config=$(ls -d /tmp/gpu_kto/*/0-0/config.yaml | tail -1)
[ -z "${PROFILE:-}" ] || USE_RAY=0 python3 benchmarks/gpu_profile.py "$config" "$out/profile.txt" 2>"$out/profile.log" | tail -60
