"""The agent's HTTP/1.1 client: requests in by the exchange interface, bytes out to the local server."""
