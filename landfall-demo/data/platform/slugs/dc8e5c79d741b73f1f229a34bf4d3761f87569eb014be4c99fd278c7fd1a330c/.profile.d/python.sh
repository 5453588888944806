export PATH="$HOME/.landfall/python/bin:$PATH" VIRTUAL_ENV="$HOME/.landfall/python"
export PYTHONUNBUFFERED="${PYTHONUNBUFFERED:-true}" LANG="${LANG:-C.UTF-8}"
