#!/usr/bin/env bash
# Everything that a GPU is wanted for, one after the other: side by side, the memory would run out.
#
#   benchmarks/gpu/run.sh OUT SMOLLM2.gguf HH.jsonl.gz      at most ten minutes; again, to go on where it stopped
#   QUICK=1 benchmarks/gpu/run.sh OUT SMOLLM2.gguf HH.jsonl.gz    a few steps of each, to try the script on a CPU
#
# Each step has a log in OUT. OUT/seconds.csv has the seconds of each step, OUT/memory.csv the memory of the device once
# a second (MiB). A run that is cut off goes on at its last checkpoint. PYTHON names the interpreter with pitlm.
set -uo pipefail
test $# = 3 || { sed -n '2,9s/^# \?//p' "$0" >&2; exit 2; }
mkdir -p "$1/done" && OUT=$(cd "$1" && pwd) && SMOL=$(realpath "$2") && HH=$(realpath "$3") || exit 2
cd "$(dirname "$0")/../.." || exit 2
PYTHON=${PYTHON:-.venv/bin/python} LIMIT=${LIMIT:-580}
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
BEGIN=$SECONDS

few=() tried=() gap=(--scale 4) rl=()
if [ -n "${QUICK:-}" ]; then
  for section in policy_sft reward improver_sft gap curriculum.rl; do few+=(--set "$section.max_steps=2"); done
  few+=(--set curriculum.steps=null --set evaluation.items=4 --set evaluation.fresh_pairs=4 --set data.max_new_tokens=12)
  tried=(--set data.pairs=200) gap=(--rounds 1 --shapes pocket) rl=(--rounds 1 --shapes p96)
fi

step() {  # NAME COMMAND...: do it once, in the time that is left
  local name=$1 begin=$SECONDS left=$((LIMIT - SECONDS + BEGIN)) code
  shift
  [ -e "$OUT/done/$name" ] && return
  [ "$left" -gt 5 ] || { echo "$name: no time left"; return 1; }
  echo "$name ..."
  timeout "$left" "$PYTHON" "$@" > "$OUT/$name.log" 2>&1
  code=$?
  echo "$name,$begin,$((SECONDS - begin)),$code" >> "$OUT/seconds.csv"
  if [ $code = 0 ]; then touch "$OUT/done/$name"; else echo "$name: exit code $code, see $OUT/$name.log"; fi
}

pit() { local name=$1; shift; step "$name" -m pitlm.cli.main "$@"; }

if command -v nvidia-smi > /dev/null; then
  nvidia-smi --query-gpu=timestamp,memory.used --format=csv,noheader,nounits -l 1 >> "$OUT/memory.csv" &
  trap "kill $!" EXIT
fi

with=(--set "model.base=$SMOL" --set model.dtype=bfloat16 "${tried[@]}" "${few[@]}")
smol=("${with[@]}" ${QUICK:+--set policy_rl.max_steps=2})
# In float32: the quickstart trains whole weights, which lose most of their steps in bfloat16.
pit quickstart run quickstart --out "$OUT/quickstart" "${tried[@]}" "${few[@]}"
pit smol-0 run smol --seed 0 --out "$OUT/smol-0" "${smol[@]}"
pit plan doctor smol "${smol[@]}" --beside "$OUT/smol-0" --json "$OUT/plan.json"
step gap benchmarks/gap.py --dtype bfloat16 "${gap[@]}" --json "$OUT/gap.json"
step rl benchmarks/rl.py --dtype bfloat16 "${rl[@]}" --json "$OUT/rl.json"
pit hh-smol run hh-smol --data "$HH" --out "$OUT/hh-smol" "${with[@]}" --until gap
for seed in 1 2; do pit "smol-$seed" run smol --seed $seed --out "$OUT/smol-$seed" "${smol[@]}"; done
ls "$OUT/done"
