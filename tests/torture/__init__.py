"""The torture test: random work on real servers, faults on purpose, and a model of what must hold.

    make torture TRIALS=300 SEED=1        or        .venv/bin/python -m torture --trials 300

plan      what one trial does, a pure function of its seed
world     the servers of all trials, and what one trial owns of them
clock     jumps of the servers' clocks          proxy     S3 in trouble
node, worker                                    the processes that get killed
faults    what goes wrong                       damage    flipped bits, cut and foreign segments
model     what must be true                     audit     what is there, counted anew
trial     work and faults, then recovery, then the comparison
"""
