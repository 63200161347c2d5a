"""What leaves a run for other tools and other people: plain weights, a model card, a repository on the hub."""
