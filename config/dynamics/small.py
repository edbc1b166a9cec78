"""
On top of config/small.py: 15 periods of 250 steps after stage 1, each with facts of its own, in English and in
En-Clone.
"""

fact_periods = 15
fact_languages = ("en", "clone")
fact_frequencies = (10, 30, 100)
fact_count = 1440
snapshot_interval = 250
