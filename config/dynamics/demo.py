"""
On top of config/demo.py: seven periods of 250 steps after stage 1, each with facts of its own, in English and En-Clone.

Stage 1 ends with the first snapshot. With these, stated facts are 26% of the tokens read, half of them in En-Clone:
far more En-Clone than the tables' runs read. Eight facts of each frequency and language in a period: over four periods
or more together, differences of 25% are more than chance.
"""

max_steps = 2000
stage1_steps = 250
fact_periods = 7
fact_languages = ("en", "clone")
fact_frequencies = (100, 400)
fact_count = 224
snapshot_interval = 250
