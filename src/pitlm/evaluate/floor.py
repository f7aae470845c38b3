"""A floor under every reward model: a bag of words, which sees neither the prompt nor the order of the words.

The paper has no such floor.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from pitlm.core.nouns import Preference
from pitlm.data.folds import cut_folds
from pitlm.evaluate.statistics import share

WORDS = r"\w+|[^\w\s]"
"""What counts as a word: a run of letters and digits, or one other sign."""
C = 0.3
"""Inverse strength of the regression's L2 penalty, chosen once on HH-RLHF's human pairs."""


def floor_scores(train: Sequence[Preference], held_out: Sequence[Preference]) -> np.ndarray[Any, Any]:
    """Train the bag of words on some pairs and score others.

    The features of a response are the TF-IDF of its words and pairs of words, and the logarithm of its length in words.
    A logistic regression without intercept reads the difference of two responses, so swapped responses swap the sign.

    Returns:
        For each held-out pair the log-odds that the chosen response is the better one; 0 if the features are equal.
    """
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=WORDS)
    words.fit([text for pair in train for text in (pair.chosen, pair.rejected)])

    def features(texts: Sequence[str]) -> Any:
        lengths = np.log1p([[len(text.split())] for text in texts])
        return sparse.hstack([words.transform(texts), lengths], format="csr")

    def differences(pairs: Sequence[Preference]) -> Any:
        return features([pair.chosen for pair in pairs]) - features([pair.rejected for pair in pairs])

    forward = differences(train)
    model = LogisticRegression(C=C, fit_intercept=False, max_iter=1000)
    model.fit(sparse.vstack([forward, -forward]), np.repeat([1, 0], len(train)))
    scores: np.ndarray[Any, Any] = model.decision_function(differences(held_out))
    return scores


def floor_share(pairs: Sequence[Preference]) -> dict[str, float]:
    """How often the bag of words ranks held-out pairs right: a tenth of the prompts is held out, the rest trains it.

    Raises:
        InputError: too few prompts for five folds.
    """
    folds = cut_folds(pairs, test=0.1, validation=0.05)
    train = [pair for name, fold in folds.items() if name != "test" for pair in fold]
    return share(floor_scores(train, folds["test"]) > 0)
