"""The resources people write (`edgetun.dev/v1alpha1`), as pydantic models: the public API, from which the CRDs are generated.

Nothing is imported here, so that a process which needs only the pure parts pays for no more.
"""
