"""The autoscaling law (DESIGN §7): signals of one service → how large its pools should be, and why.

signals.py says what is known, law.py finds the least sizes (ladder.py has those there are, outlook.py their forecasts,
explain.py the reasons), correction.py keeps predictions honest, decide.py turns sizes into changes over time. The
forecast is phases.py, in closed form, on workload.py, machine.py, prefill.py, decode.py and queueing.py. Pure:
production, simulator and benchmarks run the same code.
"""
