"""Worth of stored context: prices, savings, samples of traffic and what-if estimates.

Arithmetic lives in `neve.planner`. Must not be here: Celery; decisions on stored blocks.
"""
