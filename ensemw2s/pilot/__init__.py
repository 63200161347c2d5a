"""A small run before the whole one: is there a gap to recover, do the weak models agree, how long will it take."""
