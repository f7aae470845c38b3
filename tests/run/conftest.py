from tiny_run import models, shell, tiny_run

__all__ = ["models", "shell", "tiny_run"]
