"""Importing this makes the process die with its parent: for a process whose only hook is the modules it preloads.

multiprocessing's fork server outlives a main process that is killed, and with it the stage it forked. It was started with
Ctrl-C blocked, and ignores it from here on; what it starts must not inherit the block.
"""

import signal

from launch.processes import die_with_parent

die_with_parent()
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
