#!/usr/bin/env bash
# examples/run.sh NAME OUT [flags of `paceline replay`]: serve examples/NAME.yaml, replay a load against it, and stop it as
# Ctrl-C would. Leaves report.json, report.png, report.html and up.log in OUT. Fails if any step, the stop included, does;
# with REQUIRE_VALID=1 also if the report is not valid. NAME may be a path to another file; without flags nothing is
# replayed. UP_FLAGS go to `paceline up`, READY_S and STOP_S bound its start and stop, THEN is a command that gets the URL
# once it is ready.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name=$(basename "$1" .yaml)
file=$1
[[ $file == */* ]] || file=examples/$name.yaml
out=$2
shift 2
paceline=.venv/bin/paceline
ready_s=${READY_S:-60}
read -ra up_flags <<<"${UP_FLAGS:-}"
read -ra then_run <<<"${THEN:-}"
stop_s=${STOP_S:-60}

rm -rf "$out"
mkdir -p "$out"

fail() {
  echo "$name: $1; the end of $out/up.log:" >&2
  tail -n 20 "$out/up.log" >&2
  exit 1
}

stop() { # SIGINT, as Ctrl-C sends it; what has not ended in time is killed
  kill -INT "$up" 2>/dev/null || return 0
  for ((tenths = 0; tenths < 10 * stop_s; tenths++)); do
    kill -0 "$up" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -KILL -- "-$up"
}

echo "$name: paceline up $file${UP_FLAGS:+ $UP_FLAGS}"
set -m # its own process group: SIGINT stays deliverable, and what it leaves behind can be found
"$paceline" up "$file" "${up_flags[@]}" --port 0 --url-file "$out/url" </dev/null >"$out/up.log" 2>&1 &
up=$!
set +m
trap stop EXIT

for ((tenths = 0; ; tenths++)); do
  [[ -s $out/url ]] && break
  kill -0 "$up" 2>/dev/null || fail "paceline up ended before it was ready"
  ((tenths < 10 * ready_s)) || fail "paceline up is not ready after $ready_s s"
  sleep 0.1
done
url=$(<"$out/url")

((${#then_run[@]} == 0)) || "${then_run[@]}" "$url"
if (($#)); then
  echo "$name: paceline replay --url $url $*"
  "$paceline" replay --url "$url" "$@" --json "$out/report.json" --figure "$out/report.png"
fi

stop
status=0
wait "$up" || status=$?
((status == 0)) || fail "paceline up ended with exit code $status on SIGINT"
trap - EXIT
if kill -KILL -- "-$up" 2>/dev/null; then
  fail "paceline up left a process behind"
fi

(($# == 0)) || echo "$name: report $out/report.json, figure $out/report.png, log $out/up.log"
[[ ${REQUIRE_VALID:-} != 1 ]] || grep -q '"valid": *true' "$out/report.json" || fail "the report is not valid"
