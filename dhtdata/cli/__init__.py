"""Command line: arguments, output, exit codes. The only package that sees both sides of the wall.

| module | commands |
|---|---|
| ``publishing`` | publish, seed, ticket, stop |
| ``fetching`` | get |
| ``describing`` | head, info |
| ``keeping`` | ls, verify, pin, unpin, rm, gc |
| ``watching`` | status, peers, doctor, version |

``session`` opens what a command needs, ``output`` is what people and programs see, ``exits`` the table of exit codes.
"""
