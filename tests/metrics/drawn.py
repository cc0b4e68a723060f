"""Drawn films and matrices, for laws that hold for all of them."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

# Rounded scores make ties; every draw has both classes.
films = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 40)), min_size=2, max_size=80).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)

matrices = st.lists(st.tuples(*[st.integers(0, 50)] * 4), min_size=1, max_size=20)

priors = st.floats(0.01, 0.99)

EXAMPLES = settings(max_examples=60, deadline=None)


def split(rows):
    return np.array([label for label, _ in rows]), np.array([score / 40 for _, score in rows])


def draw(films=400, seed=0, gap=1.0, digits=2):
    generator = np.random.default_rng(seed)
    labels = (generator.random(films) < 0.6).astype(int)
    logits = generator.normal(gap * (2 * labels - 1), 1.5)
    return labels, np.round(1 / (1 + np.exp(-logits)), digits)


def bayes(sensitivity, specificity, prevalence):
    """PPV and NPV by Bayes' rule; None where nothing is called."""
    called = sensitivity * prevalence + (1 - specificity) * (1 - prevalence)
    ppv = sensitivity * prevalence / called if called > 0 else None
    return ppv, (specificity * (1 - prevalence) / (1 - called) if called < 1 else None)
