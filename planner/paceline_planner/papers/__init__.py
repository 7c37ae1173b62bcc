"""Published experiments, run on the fleet simulator with the policies that production runs."""
