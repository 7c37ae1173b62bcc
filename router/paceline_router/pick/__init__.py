"""Which replicas serve a request: policies by name, one file each.

To change a policy, change its file; to add one, add a file and a line in policies.py. What a policy is asked and
answers is in choice.py; picker.py puts a request's choices together.
"""

from paceline_router.pick.choice import Ask, Choice, NoEndpoint, Policy
from paceline_router.pick.picker import Picker
from paceline_router.pick.policies import FORESEEING, POLICIES

__all__ = ["FORESEEING", "POLICIES", "Ask", "Choice", "NoEndpoint", "Picker", "Policy"]
