"""The command line: each verb is a module, whose docstring ends with the examples that ``--help`` shows."""


def examples(docstring: str | None) -> str:
    """Return what the docstring of a verb's module says after its first line."""
    return (docstring or "").partition("\n")[2]
