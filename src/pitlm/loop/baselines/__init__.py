"""The systems that PIT is compared with; :mod:`pitlm.loop.baselines.baseline` says how to add one."""
