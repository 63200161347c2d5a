"""A run as a Ray job; submitted again, it goes on where it stopped, or says that there is nothing to do.

ray job submit --working-dir . -- python jobs/run.py --config quickstart --set storage=/shared/runs
"""

import typer

from ensemw2s.cli import options, runs


def main(
    config: options.ConfigOption,
    set_: options.Overrides = None,
    fresh: options.Fresh = False,
    debug: options.Debug = False,
) -> None:
    """Run a config on the cluster that this job is part of, as `ensemw2s run` does."""
    runs.run(config, set_, fresh=fresh, debug=debug)


if __name__ == "__main__":
    typer.run(main)
