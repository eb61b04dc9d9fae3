"""The HTTP API and its pages: what the database knows. It writes requests only, and starts no work."""
