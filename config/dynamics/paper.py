"""
On top of config/paper.py: 36 periods of 250 steps after stage 1, each with facts of its own, in English and in
En-Clone.
"""

max_steps = 9500
fact_periods = 36
fact_languages = ("en", "clone")
fact_frequencies = (10, 30, 100)
fact_count = 3456
snapshot_interval = 250
