"""The experiments of the paper, and those that its reviewers asked for, where the truth is known."""
