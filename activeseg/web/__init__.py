"""The HTTP API: what the database knows, for programs. It only reads, and starts no work."""
