"""The command line: each verb is a module, whose docstring ends with the examples that ``--help`` shows."""
