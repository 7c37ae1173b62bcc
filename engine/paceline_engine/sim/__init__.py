"""The simulated engine: a clock-free replica (pure), and its server with vLLM's API and metric names."""
