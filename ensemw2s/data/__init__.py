"""Examples: where they come from, how they are divided, and the tokens that they become.

Sources flow in as config sections; five disjoint splits and their token tables flow out. No Ray in here.
"""
