#!/usr/bin/env bash
# The six notebooks on a machine with two GPUs, twice at once, one worker each: with the accelerator, and with LLaMA-Factory's trainer.
#   gpu_notebooks.sh MODEL DATA OUT [more parameters of kto run]     MODEL: a folder with Llama 3's template; DATA: kto_en_demo.json
# The packages must be there already, and the machine its own: in the end every Ray on it is stopped.
# Leaves in OUT each run's output, run.json, log and executed notebooks; prints the seconds.
set -uo pipefail
model=$(realpath "$1") data=$(realpath "$2") out=$(realpath -m "$3")
shift 3
cd "$(dirname "$0")/.." && mkdir -p "$out"
export PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0 HF_HUB_OFFLINE=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
ray() { python3 -m ray.scripts.scripts "$@" >>"$out/ray.log" 2>&1; }
ray start --head --num-gpus=2 --num-cpus=12 --node-ip-address=127.0.0.1 --include-dashboard=false --disable-usage-stats || exit 1
run() {
  local name=$1
  shift
  python3 -m kto run --profile ray --storage "$out/storage-$name" --run-name "$name" -p "model_name_or_path=$model" -p template=llama3 \
    -p "dataset=$data" -p cutoff_len=512 -p max_steps=6 -p save_steps=3 -p logging_steps=1 -p ray_num_workers=1 -p score_at_most=1 \
    -p samples=2 -p max_new_tokens=16 "$@" >"$out/$name.txt" 2>&1
  echo "$name: status $?; $(grep -E '^(seconds|total seconds|training.s pace|error)' "$out/$name.txt" | tr -s ' ' | paste -sd';')"
}
run accelerated -p per_device_train_batch_size=4 "$@" &
run stock -p accelerated=false -p train_config=kto_lora.yaml -p per_device_train_batch_size=2 -p gradient_accumulation_steps=2 "$@" &
wait
for name in accelerated stock; do
  mkdir -p "$out/$name" && cp "$out/storage-$name/$name"/{run.json,*.log,notebooks/*.ipynb} "$out/$name/" 2>/dev/null
done
ray stop
