"""The tests, dealt over the nodes of a run, reported in the Test Anything Protocol."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import page


def greets_by_name():
    assert "Ada" in page.render("Ada", "v1", "abc"), "the name is not on the page"


def says_its_release():
    assert "v7" in page.render("Ada", "v7", "abc"), "the release is not on the page"


def escapes_names():
    assert "<script>" not in page.render("<script>", "v1", "abc"), "a name became markup"


def greeting_is_a_word():
    assert page.GREETING.strip(), "the greeting is empty"


TESTS = [greets_by_name, says_its_release, escapes_names, greeting_is_a_word]
node, nodes = int(os.environ.get("CI_NODE_INDEX", 0)), int(os.environ.get("CI_NODE_TOTAL", 1))
mine = TESTS[node::nodes]

print("TAP version 14")
print(f"1..{len(mine)}")
failed = 0
for number, test in enumerate(mine, 1):
    try:
        test()
        print(f"ok {number} - {test.__name__.replace('_', ' ')}")
    except Exception as error:
        failed += 1
        print(f"not ok {number} - {test.__name__.replace('_', ' ')}")
        print(f"# {error}")
sys.exit(1 if failed else 0)
