#!/usr/bin/env bash
# An environment of public clients that tests run against a router as they are: build.sh makes it, `build.sh where`
# prints its folder and fails where it is not complete. It lies in the cache, named by what it is made of
# (requirements/clients.txt); torch and tokenizers are those of `make vllm`, which must have been run. 1.3 GB, 1 min.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/paceline
PYTHON=${PYTHON:-python3}
LOCK=requirements/clients.txt

die() { echo "clients: $*" >&2; exit 1; }

tag=$("$PYTHON" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')-$(uname -m)
made_of=$(sed '/^ *#/d' "$LOCK" requirements/vllm.txt | sha256sum | cut -c1-16)  # comments change nothing
ENVIRONMENT=$CACHE/clients/$tag-$made_of

case ${1:-build} in
where) echo "$ENVIRONMENT"; [[ -f $ENVIRONMENT/.made ]] && images/vllm/build.sh where > /dev/null; exit;;
build) ;;
*) die "no command $1; there are: build where";;
esac

[[ $tag == python3.11-x86_64 ]] || die "$LOCK is for Python 3.11 on x86_64, this is $tag: make clients PYTHON=python3.11"
vllm=$(images/vllm/build.sh where) || die "torch comes from vLLM's environment, which is not made (7 GB, 4 min, once): make vllm"
mkdir -p "$CACHE/clients"
exec 9> "$CACHE/clients/.lock"
flock 9

if [[ ! -f $ENVIRONMENT/.made ]]; then
  free=$(df --output=avail -BG "$CACHE" | tail -1 | tr -dc 0-9)
  (( free >= 2 )) || die "$CACHE has $free GB left, the environment needs 2 while it is made; XDG_CACHE_HOME moves it"
  rm -rf "$ENVIRONMENT"
  "$PYTHON" -m venv "$ENVIRONMENT"
  echo "clients: installing $(grep -c == "$LOCK") packages into $ENVIRONMENT"
  # The lock is complete, and was made with an override that pip would not know: hence no dependencies.
  "$ENVIRONMENT/bin/pip" install --quiet --no-cache-dir --no-deps --only-binary :all: --require-hashes -r "$LOCK"
  site=$("$ENVIRONMENT/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "${vllm%%$'\n'*}/lib/python3.11/site-packages" > "$site/vllm.pth"  # looked at last
  touch "$ENVIRONMENT/.made"
fi
echo "clients: $ENVIRONMENT"
