#!/usr/bin/env bash
# Builds the images with buildah or docker: build.sh [control] [engine] [base]; without a name, control, and engine where
# ENGINE_BASE (vLLM's image) is given. Nothing is fetched inside a build: the wheels come from the host.
#   TAG          of both images (dev)           BUILDER      buildah or docker (whichever works, buildah first)
#   BASE         of the control image: a Debian with python3 and venv; without it python:X.Y-slim where a registry
#                answers, otherwise one made here by mmdebstrap
# Each image is also left as an archive in $CACHE/images, for nodes that pull nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/paceline
TAG=${TAG:-dev}
VENV=.venv/bin
[[ -x $VENV/python ]] || { echo "images: no .venv; run make images" >&2; exit 1; }
PYTHON=$("$VENV/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
CONTEXT=$CACHE/images/context
export STORAGE_DRIVER=${STORAGE_DRIVER:-overlay} BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot}
mkdir -p "$CONTEXT"
exec 9> "$CACHE/images/.lock"
flock 9

die() { echo "images: $*" >&2; exit 1; }

find_builder() {
  if command -v buildah > /dev/null; then echo buildah
  elif docker info > /dev/null 2>&1; then echo docker
  else die "neither buildah nor a running docker; on Debian: apt-get install -y --no-install-recommends buildah mmdebstrap"; fi
}

build() { # NAME CONTAINERFILE CONTEXT [build arguments]
  local name=$1 file=$2 context=$3; shift 3
  case $BUILDER in
  buildah) buildah bud --quiet --layers --pull-never --tag "$name" --file "$file" "$@" "$context" > /dev/null;;
  docker) docker build --quiet --tag "$name" --file "$file" "$@" "$context" > /dev/null;;
  esac
}

have() { case $BUILDER in buildah) buildah inspect --type image "$1";; docker) docker image inspect "$1";; esac > /dev/null 2>&1; }
pull() { timeout 60 "$BUILDER" pull --quiet "$1" > /dev/null 2>&1; }

archive() { # NAME: to a file, written whole or not at all, and not again while the image is the same
  local out id; out=$CACHE/images/$(basename "$1" | tr : _).tar
  case $BUILDER in
  buildah) id=$(buildah inspect --type image --format '{{.FromImageID}}' "$1");;
  docker) id=$(docker image inspect --format '{{.Id}}' "$1");;
  esac
  if [[ ! -f $out || $(cat "$out.id" 2> /dev/null) != "$id" ]]; then
    rm -f "$out.new" "$out.id"
    case $BUILDER in
    buildah) buildah push --quiet "$1" "docker-archive:$out.new:$1";;  # uncompressed: nodes unpack it at once
    docker) docker save --output "$out.new" "$1";;
    esac
    mv "$out.new" "$out"
    echo "$id" > "$out.id"
  fi
  echo "images: $1 ($(du -h "$out" | cut -f1), $out)"
}

# A Debian with Python and nothing else, from the host's own release and package sources.
make_base() { # NAME
  command -v mmdebstrap > /dev/null || die "no registry answers and mmdebstrap is missing: install it, or name an image by BASE"
  local root=$CACHE/images/base sources=() codename
  for list in /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources}; do [[ -s $list ]] && sources+=("$list"); done
  codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
  mkdir -p "$root"
  # usr-is-merged, with its hook: its alternative usrmerge brings 56 MiB of Perl
  mmdebstrap --quiet --variant=essential --include=python3,python3-venv,ca-certificates,libstdc++6,usr-is-merged \
    --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' "$codename" "$root/root.tar" "${sources[@]}" > "$root/log" 2>&1 \
    || die "mmdebstrap failed; its last line: $(tail -1 "$root/log"); all of it: $root/log"
  printf 'FROM scratch\nADD root.tar /\n' > "$root/Containerfile"
  build "$1" "$root/Containerfile" "$root"
  rm "$root/root.tar"
}

choose_base() { # leaves it in BASE
  [[ -z ${BASE:-} ]] || return 0
  local made; made=localhost/paceline-base:python$PYTHON-$(declare -f make_base | sha256sum | cut -c1-8)  # anew after an edit
  local public=python:$PYTHON-slim
  if have "$made"; then BASE=$made
  elif have "$public" || pull "$public"; then BASE=$public
  else make_base "$made"; BASE=$made; fi
}

# The dependencies' wheels by their hashes, fetched once for each state of the lock file.
fetch_wheels() {
  local wheels; wheels=$CACHE/wheels/python$PYTHON-$(uname -m)-$(sha256sum requirements/image.txt | cut -c1-16)
  if [[ ! -d $wheels ]]; then
    rm -rf "$wheels.new"
    "$VENV/pip" download --quiet --only-binary :all: --require-hashes --requirement requirements/image.txt --dest "$wheels.new"
    mv "$wheels.new" "$wheels"
  fi
  rm -rf "$CONTEXT/wheels"
  cp -al "$wheels" "$CONTEXT/wheels"
  cp requirements/image.txt "$CONTEXT/requirements.txt"
}

# Ours is built anew each time, and is the same file where the code is: the layers after it are then cached.
build_wheel() {
  rm -rf "$CONTEXT/app"
  "$VENV/python" -m hatchling build --target wheel --directory "$CONTEXT/app" > /dev/null 2>&1 || die "hatchling could not build our wheel"
  touch --date=@315532800 "$CONTEXT/app" "$CONTEXT"/app/*
}

BUILDER=${BUILDER:-$(find_builder)}
[[ $# -gt 0 ]] || set -- control ${ENGINE_BASE:+engine}
for image in "$@"; do
  case $image in
  base) choose_base; echo "images: base $BASE";;
  control)
    choose_base; fetch_wheels; build_wheel
    build "localhost/paceline:$TAG" images/control.Containerfile "$CONTEXT" --build-arg BASE="$BASE" --build-arg PYTHON="$PYTHON"
    archive "localhost/paceline:$TAG";;
  engine)
    [[ -n ${ENGINE_BASE:-} ]] || die "engine: name vLLM's image by ENGINE_BASE"
    have "$ENGINE_BASE" || pull "$ENGINE_BASE" || die "cannot pull $ENGINE_BASE"
    build_wheel
    build "localhost/paceline-engine:$TAG" images/engine.Containerfile "$CONTEXT" --build-arg BASE="$ENGINE_BASE"
    archive "localhost/paceline-engine:$TAG";;
  *) die "no image $image; there are: control engine base";;
  esac
done
