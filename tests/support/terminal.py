"""Commands as a shell and a terminal run them: streams redirected or closed, a signal at a chosen import."""

from __future__ import annotations

import os
import subprocess
import sys

from processes import ROOT, python

Done = subprocess.CompletedProcess[str]

# Sends itself the signal when the module is about to be imported, then runs the command.
AT_IMPORT = """\
import os, runpy, signal, sys
class AtImport:
    def find_spec(self, name, *_):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.{signal})
sys.meta_path.insert(0, AtImport())
{before}
sys.argv[0] = {package!r}
runpy.run_module({package!r}, run_name="__main__", alter_sys=True)
"""


def shell(line: str) -> Done:
    """A line of bash, in which `$python` is this interpreter; the status is that of the command that failed."""
    environment = os.environ | {"python": sys.executable, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    command = ["bash", "-o", "pipefail", "-c", line]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


def stopped_at(module: str, signal: str, package: str, *arguments: str, before: str = "") -> Done:
    """`python -m PACKAGE …`, which gets the signal at the import of the module; `before` is code that is run first."""
    code = AT_IMPORT.format(module=module, signal=signal, package=package, before=before)
    return python("-c", code, *arguments, env=os.environ | {"PYTHONPATH": str(ROOT)})
