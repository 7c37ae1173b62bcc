"""Step-time tables from a model's configuration and a GPU's data sheet, where no measured table exists.

shape.py reads the model, gpu.py the machine, cost.py counts a step's work and the seconds it takes, fractions.py holds
how much of its data sheet a GPU achieves, fitting.py finds that from what evidence.py reads, and table.py makes the
StepTable.
"""
