"""The fleet simulator: discrete events on a virtual clock around the policies that production runs."""
