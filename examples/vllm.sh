#!/usr/bin/env bash
# examples/vllm.sh OUT: the demo on real vLLM, on the CPU, with the model SmolLM2-135M; 5 minutes on two idle cores.
# First chat.yaml, prefill and decode apart: some questions and a replay, whose report and figure are left in OUT/chat.
# Then mixed.yaml beside stock vLLM: what a long prompt does to a running answer, in OUT/gaps.png. Both files are used
# with objectives that a core can hold, and left in OUT so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=$1
images/vllm/build.sh
models=$(images/vllm/build.sh where | tail -n 1)
export READY_S=400 STOP_S=120 # an engine starts in 20 s on an idle machine; the first time it reads 6 GB
export UP_FLAGS="--engine vllm --model file://$models/smollm2-135m"
client=".venv/bin/python examples/vllm_client.py"

rm -rf "$out"
mkdir -p "$out"
sed -e 's/ttftMs: 400/ttftMs: 5000/' -e 's/tpotMs: 40/tpotMs: 200/' examples/chat.yaml >"$out/chat.yaml"
sed -e 's/ttftMs: 500/ttftMs: 10000/' -e 's/tpotMs: 50/tpotMs: 150/' examples/mixed.yaml >"$out/mixed.yaml"

THEN="$client ask" examples/run.sh "$out/chat.yaml" "$out/chat" --synthetic fixed:100,24 --rate 0.25 --duration 40
THEN="$client gaps --file $out/mixed.yaml --model $models/smollm2-135m --out $out" examples/run.sh "$out/mixed.yaml" "$out/mixed"
