"""PostgreSQL in the sandbox: what may be asked, how a session is set up, the connection, the runner, the cells.

Modules of other parts import from here only what they need; importing this package alone imports no driver.
"""
