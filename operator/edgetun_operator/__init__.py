"""The operator: custom resources to Deployments, Services, Secrets and status. Never on the path of a request or a failover.

`main.py` wires, `triggers.py` wakes, `work.py` queues, `world.py` is the local copy of the cluster, `reconcile/` has one
level-triggered function per kind, `desired/` builds what should be there, `decide/` says what the status should say.
"""
