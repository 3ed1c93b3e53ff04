"""Commands in children of the test process, which has everything imported already: a new interpreter spends three seconds on that alone.

A child has its own arguments, folder, standard output and error, and ends by itself. That the installed scripts start is shown elsewhere: each with `--help` in test_repository, each at work in test_readme.
"""

import importlib
import os
import signal
import sys
import tempfile
import traceback
from configparser import ConfigParser
from pathlib import Path

from patience import HANG

CONFIG = ConfigParser(delimiters=["="])
CONFIG.read(Path(__file__).resolve().parents[1] / "settings.ini", encoding="utf-8")
TARGETS = {  # command -> module and function
    name.strip(): target.strip().split(":")
    for name, target in (
        line.split("=")
        for line in CONFIG["DEFAULT"]["console_scripts"].splitlines()
        if line.strip()
    )
}


class Child:
    "A call in a child of this process; `pid` is the child's."

    def __init__(self, call, cwd="."):
        self.files = [tempfile.TemporaryFile(), tempfile.TemporaryFile()]
        self.pid = os.fork()
        if self.pid == 0:
            self._work(call, cwd)

    def _work(self, call, cwd):
        status = 1
        try:
            signal.alarm(HANG)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for fd, file in enumerate(self.files, 1):
                os.dup2(file.fileno(), fd)
            sys.stdout, sys.stderr = (
                open(fd, "w", encoding="utf-8", buffering=1, closefd=False) for fd in (1, 2)
            )
            os.chdir(cwd)
            call()
            status = 0
        except SystemExit as e:  # as the interpreter does it
            if isinstance(e.code, str):
                print(e.code, file=sys.stderr)
            status = e.code if isinstance(e.code, int) else int(e.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)

    def end(self):
        "Wait for it: exit status (minus the signal that killed it), standard output, standard error."
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        said = []
        for file in self.files:
            with file:
                file.seek(0)
                said.append(file.read().decode())
        return status, *said


def child(name, *words, cwd=".", before=lambda: None):
    "A command with what stands behind its name on the command line, after `before` has been called in its process."
    module, function = TARGETS[name]
    f = getattr(importlib.import_module(module), function)

    def call():
        before()
        sys.argv = [name, *map(str, words)]
        f()

    return Child(call, cwd)
