"""Nodes that Ray's cluster launcher starts in a cloud: spot where there is some, on-demand where not."""
