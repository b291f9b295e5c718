"""Kill schedules over a fleet of real processes: what happens when (seeded), what visitors and origins saw, and what must hold of it.

`schedule`, `pages` and `history` are pure; `origin` and `visitors` are the two ends of the fleet, in the test's own event loop.
"""
