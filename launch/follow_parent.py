"""Importing this makes the process die with its parent: for a process whose only hook is the modules it preloads.

multiprocessing's fork server outlives a main process that is killed, and with it the stage it forked.
"""

from launch.processes import die_with_parent

die_with_parent()
