"""What a run needs and costs on a cluster that is not there yet: memory, GPU-hours and money, from models of each."""
