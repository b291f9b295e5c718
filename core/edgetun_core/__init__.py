"""What two or more edgetun processes must agree on: resources, snapshot, credentials, HTTP heads, the tunnel protocol."""

__version__ = "0.1.0"
