"""A small test runner: each file's functions `test_*`, results as JUnit XML where it is told to."""

import sys
import time
import traceback
from xml.sax.saxutils import quoteattr

junit = sys.argv[1]
files = sys.argv[2:]
cases, failed = [], 0
for path in files:
    space = {"__name__": "suite"}
    exec(compile(open(path).read(), path, "exec"), space)
    for name in [name for name in space if name.startswith("test_")]:
        began = time.monotonic()
        problem = ""
        try:
            space[name]()
        except Exception as error:
            failed += 1
            line = traceback.extract_tb(error.__traceback__)[-1].lineno
            problem = f"<failure message={quoteattr(str(error))}>{path}:{line}: {quoteattr(str(error))}</failure>"
        took = time.monotonic() - began
        cases.append(f"<testcase name={quoteattr(name)} file={quoteattr(path)} time='{took:.3f}'>{problem}</testcase>")
    print(f"ran {path}", flush=True)
with open(junit, "w") as out:
    out.write(f"<testsuite name='suite' tests='{len(cases)}' failures='{failed}'>{''.join(cases)}</testsuite>")
sys.exit(1 if failed else 0)
