"""What tests wait for: the end of a process, never a moment.

`HANG` ends what would hang for ever. `killed_when_it_opens` kills a process at a place of its work,
wherever the clock stands by then.
"""

HANG = 3600  # s; nothing here takes a tenth of it, even on a busy machine


def killed_when_it_opens(name, nth=1):  # part of a path; which time
    """Python code to go before a program's own.

    The process kills itself, without any goodbye, as it is about to open such a file.
    """
    return f"""
import os, sys
def hook(event, args, seen=[]):
    if event == "open" and {name!r} in str(args[0]):
        seen.append(args[0])
        if len(seen) == {nth}: os.kill(os.getpid(), 9)
sys.addaudithook(hook)
"""
