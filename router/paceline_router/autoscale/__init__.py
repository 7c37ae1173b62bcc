"""The autoscaling law (DESIGN §7): signals of one service → how large its pools should be, and why.

signals.py says what is known, phases.py predicts attainment in closed form, law.py finds the least sizes, correction.py
keeps the prediction honest, decide.py turns sizes into changes over time. Pure: production, simulator and benchmarks
run the same code.
"""
