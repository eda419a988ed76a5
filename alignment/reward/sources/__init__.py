"""Where rewards come from: reward models, ensembles, functions, services and rules behind one protocol.

See protocol.py for the protocol, build.py for the way from a config to a source, docs/reward_sources.md for usage.
"""
