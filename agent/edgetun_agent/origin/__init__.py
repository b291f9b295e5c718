"""The agent's clients of local servers: requests in by the exchange interface, bytes out in HTTP/1.1, HTTP/2, TCP or UDP."""
