"""The database: the only package that writes SQL."""
