"""A search as a Ray job; submitted again, it goes on where it stopped, or says that there is nothing to do.

ray job submit --working-dir . -- python jobs/tune.py --config quickstart --set storage=/shared/runs
"""

import typer

from ensemw2s.cli import options, runs


def main(
    config: options.ConfigOption,
    set_: options.Overrides = None,
    fresh: options.Fresh = False,
    debug: options.Debug = False,
) -> None:
    """Search a config's space on the cluster that this job is part of, as `ensemw2s tune` does."""
    runs.tune(config, set_, resume=not fresh, fresh=fresh, debug=debug)


if __name__ == "__main__":
    typer.run(main)
