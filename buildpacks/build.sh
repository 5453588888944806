#!/usr/bin/env bash
# Builds the code in /app with one or more buildpacks. Runs inside the sandbox, as the process build.1.
#
#   /app         the checked-out tree, writable; what is in it afterwards is the slug
#   /buildpacks  these files, read-only
#   /cache       kept between builds
#   /env         a file per config var, named by it, read-only
#   /out         results: `buildpacks`, `release.N.yml`, `Procfile`, `test_command`; or `dockerfile`, which is to be
#                built instead, by the engine that LANDFALL_ENGINE names; or `refused`
#
# BUILDPACKS lists the buildpacks to run, divided by blanks; when it is empty, the first one that detects the code is
# run. A word of it is the name of a built-in one, a folder, or LABEL|LOCATION: what people see of it, and a folder or
# the address of a tarball. Ends with 0, with 1 when a buildpack failed, and with 2 when no buildpack takes the code.
set -uo pipefail

build_dir=${BUILD_DIR:-/app}
cache_dir=${CACHE_DIR:-/cache}
env_dir=${ENV_DIR:-/env}
out_dir=${OUT_DIR:-/out}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
asked=${BUILDPACKS:-}
engine=${LANDFALL_ENGINE:-}
dockerfile=${LANDFALL_DOCKERFILE:-}
unset LANDFALL_ENGINE LANDFALL_DOCKERFILE BUILD_DIR CACHE_DIR ENV_DIR OUT_DIR BUILDPACKS CDPATH GLOBIGNORE

export STACK=${STACK:-heroku-24} SOURCE_VERSION=${SOURCE_VERSION:-}
export HOME=$build_dir REQUEST_ID=${REQUEST_ID:-} CI=${CI:-}
[ -n "$CI" ] || unset CI

# Some package managers bring a list of authorities of their own, which knows nothing of an operator's proxy or registry.
authorities=/etc/ssl/certs/ca-certificates.crt
if [ -f "$authorities" ]; then
  export SSL_CERT_FILE=${SSL_CERT_FILE:-$authorities} REQUESTS_CA_BUNDLE=${REQUESTS_CA_BUNDLE:-$authorities}
  export NODE_EXTRA_CA_CERTS=${NODE_EXTRA_CA_CERTS:-$authorities} UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS:-1}
fi

# A buildpack may write into its own folder (`export`), so they run from a copy.
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cp -R "$here/." "$work/" && chmod -R u+w "$work" || exit 1
mkdir -p "$cache_dir" "$out_dir" || exit 1
# What a repository has in the place of our own results is none of them.
[ -L "$build_dir/.landfall" ] || rm -rf "$build_dir/.landfall/test-layer"
rm -f "$out_dir"/{buildpacks,dockerfile,refused,test_command,Procfile} "$out_dir"/release.*.yml
# Where no config var is given there may be no folder for them.
[ -d "$env_dir" ] || { env_dir=$work/env && mkdir -p "$env_dir"; }

# shellcheck source=lib/common.sh
. "$work/lib/common.sh"

# Sets `label` to what a buildpack is called and `pack` to its folder: a copy, where it is not one of ours.
find_pack() {
  label=${1%%|*}
  local location=${1#*|}
  case $location in
    http://* | https://*)
      pack=$work/foreign.$number
      mkdir -p "$pack" || exit 1
      fetch_tarball "$location" "$pack"
      ;;
    /*)
      pack=$work/foreign.$number
      mkdir -p "$pack" && cp -R "$location/." "$pack/" 2>/dev/null && chmod -R u+w "$pack"
      ;;
    *) pack=$work/$location ;;
  esac
}

# Unpacks the tarball at an address into a folder. It is kept in the cache, and asked for again only if it changed.
fetch_tarball() {
  local url=${1%%#*} wanted= file
  case $1 in *"#sha256="*) wanted=${1##*#sha256=} ;; esac
  file=$cache_dir/landfall/$(printf '%s' "$url" | sha256sum | cut -c 1-32).tar
  mkdir -p "${file%/*}" || exit 1
  if [ -z "$wanted" ] || ! echo "$wanted  $file" | sha256sum --check --status 2>/dev/null; then
    heading "Fetching the buildpack $url"
    rm -f "$file.new"
    if command -v curl >/dev/null; then
      [ -f "$file" ] || rm -f "$file.etag"
      curl --fail --silent --show-error --location --proto =http,https --max-time 120 --max-filesize 100000000 \
        --etag-compare "$file.etag" --etag-save "$file.etag" --output "$file.new" "$url" 2>&1 | indent
      status=${PIPESTATUS[0]}
    elif command -v python3 >/dev/null; then
      python3 -c 'import sys, urllib.request as r; open(sys.argv[2], "wb").write(r.urlopen(sys.argv[1], timeout=60).read(100000000))' \
        "$url" "$file.new" 2>&1 | tail -n 1 | indent
      status=${PIPESTATUS[0]}
    else
      fail "Fetching a buildpack needs curl or python3, and this machine has neither."
    fi
    [ "$status" -eq 0 ] || fail "The buildpack $url could not be fetched (status $status)."
    # Without a new file, the one that is there is still the same.
    [ ! -s "$file.new" ] || mv "$file.new" "$file" || exit 1
  fi
  if [ -n "$wanted" ] && ! echo "$wanted  $file" | sha256sum --check --status 2>/dev/null; then
    rm -f "$file" "$file.etag"
    fail "The buildpack $url is not the one that its sha256 names."
  fi
  tar --extract --no-same-owner --no-same-permissions --file "$file" --directory "$2" 2>&1 | indent
  [ "${PIPESTATUS[0]}" -eq 0 ] || fail "The buildpack $url is not a tarball that can be unpacked."
  # Code hosts put everything below one folder.
  local inner=("$2"/*)
  if [ ! -d "$2/bin" ] && [ ${#inner[@]} -eq 1 ] && [ -d "${inner[0]}/bin" ]; then
    pack=${inner[0]}
  fi
}

# The tests of a buildpack that is not ours run with its own programs, on a test node, which has no buildpacks: so it
# goes into the slug. Sets `tests`.
keep_for_tests() {
  [ -x "$1/bin/test" ] || [ -x "$1/bin/test-compile" ] || return 0
  local kept=$build_dir/.landfall/buildpacks/$number
  mkdir -p "$kept" && cp -R "$1/." "$kept/" || exit 1
  tests+=("$number")
  [ ! -x "$1/bin/test" ] || test_pack=$number
}

# Writes what runs on a test node: each `bin/test-compile BUILD CACHE ENV_DIR`, then the last `bin/test BUILD ENV_DIR`.
write_test_runner() {
  mkdir -p "$build_dir/.landfall" || exit 1
  {
    cat <<'RUNNER'
#!/usr/bin/env bash
# Runs the tests as the buildpacks say. Ends with 96 when they could not be prepared.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
build=${HOME:-/app}
env_dir=$(mktemp -d) && cache=$(mktemp -d) || exit 96
while IFS= read -r -d '' pair; do
  name=${pair%%=*}
  [[ $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] && printf '%s' "${pair#*=}" >"$env_dir/$name"
done < <(env -0)
export STACK=${STACK:-heroku-24}
RUNNER
    printf 'packs=(%s) main=%s\n' "${tests[*]}" "$test_pack"
    cat <<'RUNNER'
for number in "${packs[@]}"; do
  pack=$here/buildpacks/$number
  [ -x "$pack/bin/test-compile" ] || continue
  (cd "$pack" && exec ./bin/test-compile "$build" "$cache" "$env_dir") || exit 96
  set +u
  [ ! -f "$pack/export" ] || . "$pack/export"
  set -u
done
set +u
for profile in "$build"/.profile.d/*.sh; do
  [ -r "$profile" ] && . "$profile"
done
cd "$build" && exec "$here/buildpacks/$main/bin/test" "$build" "$env_dir"
RUNNER
  } >"$build_dir/.landfall/run-tests" && chmod 755 "$build_dir/.landfall/run-tests" || exit 1
  echo ".landfall/run-tests" >"$out_dir/test_command"
}

refuse() {
  printf '%s\n' "$@" >"$out_dir/refused"
  exit 2
}

# Leaves the building to the container engine, after this.
build_image() {
  # The engine runs outside of these walls: it shall not follow a link of the repository's.
  if [ "$(realpath --canonicalize-missing -- "$build_dir/$1")" != "$(realpath -- "$build_dir")/$1" ] || [ ! -f "$build_dir/$1" ] ||
    [ -L "$build_dir/.dockerignore" ]; then
    warn "$1 is not a plain file of the repository."
    refuse "$1, a plain file below the repository's root"
  fi
  if [ -z "$engine" ]; then
    warn "There is a Dockerfile: building it needs a container engine, and none is configured."
    refuse "${@:2}" "a container engine for its Dockerfile: the operator can name one as build.engine in landfall.toml"
  fi
  heading "Dockerfile found: $engine builds it"
  echo Dockerfile >"$out_dir/buildpacks"
  printf '%s\n' "$1" >"$out_dir/dockerfile"
  [ ! -f "$build_dir/Procfile" ] || head -c 65537 "$build_dir/Procfile" >"$out_dir/Procfile"
  exit 0
}

[ -n "$asked" ] || [ -z "$dockerfile" ] || build_image "$dockerfile"

if [ -n "$asked" ]; then
  # Names have no blanks in them, so the words are the names.
  # shellcheck disable=SC2206
  set -f && chosen=($asked) && set +f
else
  chosen=()
  wanted=()
  for name in bin ruby nodejs python java php go rust static procfile; do
    if "$work/$name/bin/detect" "$build_dir" >/dev/null; then
      chosen=("$name")
      break
    fi
    wanted+=("$(cat "$work/$name/looks-for")")
  done
  if [ ${#chosen[@]} -eq 0 ]; then
    if [ -e "$build_dir/Dockerfile" ] && [ -n "$engine" ]; then
      build_image Dockerfile
    fi
    warn "No buildpack takes this repository. It has none of these:"
    printf ' !       %s\n' "${wanted[@]}"
    [ ! -e "$build_dir/Dockerfile" ] || build_image Dockerfile "${wanted[@]}"
    refuse "${wanted[@]}"
  fi
fi

number=0
tests=()
test_pack=
for name in "${chosen[@]}"; do
  find_pack "$name"
  name=$label
  if [ ! -x "$pack/bin/compile" ]; then
    warn "There is no buildpack $name."
    refuse "a buildpack named $name"
  fi
  title=
  # Who was asked for by name need not be able to detect.
  if [ -x "$pack/bin/detect" ] && ! title=$("$pack/bin/detect" "$build_dir"); then
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
      test_pack=
    fi
  else
    keep_for_tests "$pack"
  fi
  printf '%s\n' "$name" >>"$out_dir/buildpacks"
  number=$((number + 1))
done

[ -z "$test_pack" ] || write_test_runner

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
