#!/usr/bin/env bash
# Builds the code in /app with one or more buildpacks. Runs inside the sandbox, as the process build.1.
#
#   /app         the checked-out tree, writable; what is in it afterwards is the slug
#   /buildpacks  these files, read-only
#   /cache       kept between builds
#   /env         a file per config var, named by it, read-only
#   /out         results: `buildpacks`, `release.N.yml`, `Procfile`, `test_command`, or `refused`
#
# BUILDPACKS names the buildpacks to run, divided by blanks; when it is empty, the first one that detects the code is
# run. Ends with 0, with 1 when a buildpack failed, and with 2 when no buildpack takes the code.
set -uo pipefail

build_dir=${BUILD_DIR:-/app}
cache_dir=${CACHE_DIR:-/cache}
env_dir=${ENV_DIR:-/env}
out_dir=${OUT_DIR:-/out}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
asked=${BUILDPACKS:-}
unset BUILD_DIR CACHE_DIR ENV_DIR OUT_DIR BUILDPACKS CDPATH GLOBIGNORE

export STACK=${STACK:-heroku-24} SOURCE_VERSION=${SOURCE_VERSION:-}
export HOME=$build_dir REQUEST_ID=${REQUEST_ID:-} CI=${CI:-}
[ -n "$CI" ] || unset CI

# A buildpack may write into its own folder (`export`), so they run from a copy.
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cp -R "$here/." "$work/" && chmod -R u+w "$work" || exit 1
mkdir -p "$cache_dir" "$out_dir" || exit 1
rm -f "$out_dir"/{buildpacks,refused,test_command,Procfile} "$out_dir"/release.*.yml
# Where no config var is given there may be no folder for them.
[ -d "$env_dir" ] || { env_dir=$work/env && mkdir -p "$env_dir"; }

# shellcheck source=lib/common.sh
. "$work/lib/common.sh"

# Sets `pack` to the folder of a buildpack given by name, or by absolute path, which is copied too.
find_pack() {
  case $1 in
    /*)
      pack=$work/foreign.$number
      mkdir -p "$pack" && cp -R "$1/." "$pack/" 2>/dev/null && chmod -R u+w "$pack"
      ;;
    *) pack=$work/$1 ;;
  esac
}

refuse() {
  printf '%s\n' "$@" >"$out_dir/refused"
  exit 2
}

if [ -n "$asked" ]; then
  # Names have no blanks in them, so the words are the names.
  # shellcheck disable=SC2206
  set -f && chosen=($asked) && set +f
else
  chosen=()
  wanted=()
  for name in bin nodejs python static procfile; do
    if "$work/$name/bin/detect" "$build_dir" >/dev/null; then
      chosen=("$name")
      break
    fi
    wanted+=("$(cat "$work/$name/looks-for")")
  done
  if [ ${#chosen[@]} -eq 0 ]; then
    warn "No buildpack takes this repository. It has none of these:"
    printf ' !       %s\n' "${wanted[@]}"
    refuse "${wanted[@]}"
  fi
fi

number=0
for name in "${chosen[@]}"; do
  find_pack "$name"
  if [ ! -x "$pack/bin/detect" ] || [ ! -x "$pack/bin/compile" ]; then
    warn "There is no buildpack $name."
    refuse "a buildpack named $name"
  fi
  if ! title=$("$pack/bin/detect" "$build_dir"); then
    warn "The buildpack $name does not take this repository."
    if [ -f "$pack/looks-for" ]; then
      refuse "$(cat "$pack/looks-for")"
    fi
    refuse "what the buildpack $name detects"
  fi
  heading "${title:-$name} app detected"
  (cd "$pack" && exec "$pack/bin/compile" "$build_dir" "$cache_dir" "$env_dir") </dev/null
  status=$?
  if [ $status -ne 0 ]; then
    warn "The buildpack $name failed with status $status."
    exit 1
  fi
  if [ -f "$pack/export" ]; then
    # What this buildpack installed is needed by those after it.
    set +u
    # shellcheck disable=SC1091
    . "$pack/export"
    set -u
  fi
  if [ -x "$pack/bin/release" ]; then
    if ! "$pack/bin/release" "$build_dir" >"$out_dir/release.$number.yml"; then
      warn "The buildpack $name could not say what it releases."
      exit 1
    fi
  fi
  # The last buildpack is the app's main one, so its tests win.
  if [ -x "$pack/bin/test-command" ]; then
    if command=$("$pack/bin/test-command" "$build_dir"); then
      printf '%s\n' "$command" >"$out_dir/test_command"
    fi
  fi
  printf '%s\n' "$name" >>"$out_dir/buildpacks"
  number=$((number + 1))
done

heading "Discovering process types"
if [ -f "$build_dir/Procfile" ]; then
  # One byte more than allowed, so that a reader sees that it is too large.
  head -c 65537 "$build_dir/Procfile" >"$out_dir/Procfile" || exit 1
  types=$(sed -n 's/^[[:space:]]*\([A-Za-z0-9_-]\{1,\}\):.*/\1/p' "$out_dir/Procfile" | paste -sd, - | sed 's/,/, /g')
  info "Procfile declares types -> ${types:-(none)}"
else
  info "Procfile declares types -> (none)"
fi
for release in "$out_dir"/release.*.yml; do
  [ -f "$release" ] || continue
  types=$(sed -n '/^default_process_types:/,/^[^ ]/s/^ \{1,\}\([A-Za-z0-9_-]\{1,\}\):.*/\1/p' "$release" | paste -sd, - | sed 's/,/, /g')
  [ -z "$types" ] || info "Default types for buildpack -> $types"
done
