"""The Kubernetes API as operator and control see it: a typed asyncio client, informers, Leases and events.

Imports nothing of ours but core. Nothing that runs on a laptop or serves visitors imports this package.
"""
