"""What PIT is compared with. Every system takes prompts and first answers, and gives one trace for each.

A trace and not an answer, because it is what the loop gives, and because its rounds say what each step cost: so any
system can be held to a budget of tokens after the fact (:func:`pitlm.loop.baselines.budget.held_to`), by one rule.
"""
