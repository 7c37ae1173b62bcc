"""Searches placements by simulation: which parallelism each phase gets, how instances are paired, how many there are.

trial.py serves a finite load and finds the highest rate that meets an objective, instances.py says what is asked of
which machines and simulates one phase or both, placement.py has DistServe's two algorithms, splits.py the number of
prefill and decode instances of one GPU budget. Machines and demand are arguments: nothing here knows a paper.
"""
