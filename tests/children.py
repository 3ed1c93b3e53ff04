"""Commands in children of the test process, and scripts in several processes.

A child has everything imported already (a new interpreter spends three seconds on that alone). It
has its own arguments, folder, standard output and error, and ends by itself. That the installed
scripts start is shown elsewhere: each with `--help` in test_repository, each at work in
test_readme.
"""

import importlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback

from conftest import SCRIPTS
from patience import HANG


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
        "Wait for its end: exit status (minus the signal that killed it), output, errors."
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        printed = []
        for file in self.files:
            with file:
                file.seek(0)
                printed.append(file.read().decode())
        return status, *printed


def child(name, *words, cwd=".", before=lambda: None):
    "A command with its words, begun in a child after `before` has been called there."
    module, function = SCRIPTS[name]
    f = getattr(importlib.import_module(module), function)

    def call():
        before()
        sys.argv = [name, *map(str, words)]
        f()

    return Child(call, cwd)


def command(name, *words, cwd, fails=False):
    "What a command prints, which has to succeed or to fail as expected, without a traceback."
    status, out, err = child(name, *words, cwd=cwd).end()
    assert (status != 0) == fails, out + err
    assert "Traceback" not in err, err
    return out + (err if fails else "")


def launcher(processes):
    "What stands between the interpreter and a script that is to run in several processes."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    address = ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    return ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), *address]


def run_script(script, *options, processes=1, check=True):
    "A script in one process or in several of one group."
    for _ in range(3):  # somebody else may take the port before the group does
        launch = launcher(processes) if processes > 1 else []
        done = subprocess.run(
            [sys.executable, *launch, str(script), *map(str, options)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=HANG,
        )
        if done.returncode == 0 or "already in use" not in done.stderr:
            break
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done
