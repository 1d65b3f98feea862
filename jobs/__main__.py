"""`python -m jobs` is `tailrank`."""

from jobs.cli import main

main()
