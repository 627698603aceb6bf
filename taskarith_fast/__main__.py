"""``python -m taskarith_fast``: the same as the ``taskarith`` command."""

from taskarith_fast.cli import main

main()
