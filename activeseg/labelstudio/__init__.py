"""The Label Studio side: the only package that knows its API, its region formats and its server.

`brush`, `regions`, `labeling` and `tasks` are pure; `client` talks HTTP; `install` and `server` run a private Label
Studio for the demo and the tests. Importing this package imports none of them.
"""
