"""The commands of ``python -m boundedexec``: one module or package each.

They stand on the public names of `boundedexec`, and nothing imports them before the
command line chooses one.
"""
