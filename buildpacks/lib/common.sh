# What the buildpacks share: how they speak, and how they see config vars. Sourced, never run.

heading() { printf -- '-----> %s\n' "$*"; }
info() { printf '       %s\n' "$*"; }
warn() { printf ' !     %s\n' "$*"; }

fail() {
  local line
  for line in "$@"; do warn "$line"; done
  exit 1
}

# Indents the output of another program below the last heading.
indent() { sed -u 's/^/       /'; }

# Runs a program with its output indented; its status is kept.
run_indented() { "$@" 2>&1 </dev/null | indent; return "${PIPESTATUS[0]}"; }

# Exports the config vars of a folder with a file per variable, except those that would break the build itself.
export_env_dir() {
  local file name value
  for file in "$1"/*; do
    [ -f "$file" ] || continue
    name=${file##*/}
    [[ $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || continue
    case $name in
      PATH | HOME | PORT | DYNO | STACK | SOURCE_VERSION | GIT_* | CPATH | CPPATH | LIBRARY_PATH | LD_* | BASH_ENV | ENV | IFS | SHELLOPTS | BASHOPTS | PYTHONHOME)
        continue
        ;;
    esac
    # Up to the first NUL, which is to say all of it, with the newlines at its end.
    IFS= read -r -d '' value <"$file" || true
    export "$name=$value"
  done
}
