"""The console: what one router counts and knows, as a page at `/` that needs nothing but the router.

tally.py holds counters at a moment and their increase, scaling.py what the LLMService says of itself, view.py turns
both into the JSON that the page shows (all pure); serve.py gathers and answers. The page is console.html: one file,
served as it is.
"""
