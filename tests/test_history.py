import json

import pytest

from diffmatch.errors import InputError
from diffmatch.history import History


def test_curves_grow_together():
    history = History()
    assert history.best == float("inf")
    history.record(3.0, {"a": 1.0, "b": 2.0}, 0.1)
    history.record(5.0, {"a": 2.0, "b": 3.0}, 0.2)
    assert history.loss == [3.0, 5.0]
    assert history.terms == {"a": [1.0, 2.0], "b": [2.0, 3.0]}
    assert history.lr == [0.1, 0.2]
    assert (history.steps, history.best) == (2, 3.0)


def test_dictionary_is_json_and_comes_back():
    history = History(status="converged", message="done", seconds=1.5)
    history.record(3.0, {"a": 3.0}, 0.1)
    assert History(**json.loads(json.dumps(history.to_dict()))) == history


@pytest.mark.parametrize("terms", [{"a": 1.0}, {}, {"a": 1.0, "b": 1.0, "c": 1.0}])
def test_terms_that_come_and_go_are_named(terms):
    history = History()
    history.record(2.0, {"a": 1.0, "b": 1.0}, 0.1)
    with pytest.raises(InputError, match="loss: want the terms a, b in every step"):
        history.record(2.0, terms, 0.1)
