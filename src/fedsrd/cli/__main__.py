"""python -m fedsrd.cli."""

from fedsrd.cli import main

main()
