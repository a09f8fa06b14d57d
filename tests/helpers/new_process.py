"""Python code and commands in a process of their own, without the seconds that each would take to import PyTorch.

One process imports the product; each new one is a fork of it. What is tested about imports, signals or the terminal
needs ``subprocess`` itself.
"""

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

SERVER = r"""
import atexit, gc, json, os, sys, traceback
import pandas, PIL.Image, scipy.io, sklearn.covariance, sklearn.datasets, sklearn.linear_model
import oodbench.api, oodbench.conformance.datasets, oodbench.conformance.detectors, oodbench.inference.thresholds
import oodbench.leaderboard.formats, oodbench.leaderboard.plots.severity, oodbench.models.train

gc.freeze()  # what is loaded now needs no collection in each fork
while line := sys.stdin.readline():
    job = json.loads(line)
    if not (child := os.fork()):
        break
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
for number, (file, flags) in enumerate(job["files"]):
    os.dup2(os.open(file, flags), number)
os.chdir(job["cwd"])
os.environ.clear()
os.environ.update(job["environment"])
sys.argv = ["-c", *job["arguments"]]
code = 0
try:
    exec(compile(job["code"], "<string>", "exec"), {"__name__": "__main__"})
except SystemExit as end:
    code = end.code or 0
except BaseException:
    traceback.print_exc()
    code = 1
atexit._run_exitfuncs()
sys.stdout.flush()
os._exit(code)  # Python would first take apart all that is imported
"""
COMMAND = "import sys; from oodbench.cli import main; sys.argv[0] = 'oodbench'; main()"


@functools.cache
def _server() -> subprocess.Popen:
    command = [sys.executable, "-P", "-c", SERVER]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # a pool of threads would not survive the fork
    server = subprocess.Popen(command, env=one_thread, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.communicate)  # it ends with its standard input
    return server


def python(code: str, *arguments, cwd=None, timeout: float = 300, **environment) -> subprocess.CompletedProcess:
    """What ``python -P -c code arguments`` prints and returns; it is killed after ``timeout`` seconds."""
    argv = [str(argument) for argument in arguments]
    variables = os.environ | environment
    if not hasattr(os, "fork"):
        command = [sys.executable, "-P", "-c", code, *argv]
        return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=timeout)
    with tempfile.TemporaryDirectory() as folder:
        printed, errors = Path(folder, "stdout"), Path(folder, "stderr")
        writing = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        files = [(os.devnull, os.O_RDONLY), (str(printed), writing), (str(errors), writing)]
        job = {"code": code, "arguments": argv, "cwd": str(cwd or Path.cwd()), "environment": variables, "files": files}
        server = _server()
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        timer = threading.Timer(timeout, os.kill, (int(server.stdout.readline()), signal.SIGKILL))
        timer.start()
        code_returned = int(server.stdout.readline())
        timer.cancel()
        return subprocess.CompletedProcess(argv, code_returned, printed.read_text(), errors.read_text())


def oodbench(*arguments, cwd=None, **environment) -> subprocess.CompletedProcess:
    """What the command ``oodbench arguments`` prints and returns."""
    return python(COMMAND, *arguments, cwd=cwd, **environment)
