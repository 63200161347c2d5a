"""`python -m ensemw2s` is the `ensemw2s` command."""

from ensemw2s.cli.main import main

if __name__ == "__main__":
    main()
