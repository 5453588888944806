"""Keeps the test cases of one part of a file, and says how many there were and how many were kept.

Loaded by Landfall where one file is spread over several nodes. The first line of the file named by LANDFALL_CASES is
`only` or `except`, the others are names of cases as pytest's results show them: class, a space, name.
"""

import os
import re

import pytest


def _name(nodeid):
    path, bracket, parameters = nodeid.partition("[")
    names = [name for name in path.split("::") if name != "()"]
    names[0] = re.sub(r"\.py$", "", names[0].replace("/", "."))
    names[-1] += bracket + parameters
    return "%s %s" % (".".join(names[:-1]), names[-1])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    with open(os.environ["LANDFALL_CASES"], encoding="utf-8") as told:
        lines = told.read().split("\n")
    only, named = lines[0] == "only", set(lines[1:])
    kept = [item for item in items if (_name(item.nodeid) in named) == only]
    dropped = [item for item in items if (_name(item.nodeid) in named) != only]
    with open(os.environ["LANDFALL_CASES"] + ".said", "w", encoding="utf-8") as said:
        said.write("%d %d" % (len(items), len(kept)))
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept
