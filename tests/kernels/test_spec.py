"""The records of the models, and that a choice among an enumeration leaves nobody out."""

import numpy as np
import pytest
from fastmlp.kernels import spec

from fastmlp import reference

ONE_MORE = (*spec.ACTIVATIONS, "another")


def test_activations_are_those_of_the_reference():
    assert tuple(reference.ACTIVATIONS) == spec.ACTIVATIONS


def test_one_more_choice_is_an_error_where_it_has_no_branch():
    table = {name: name.upper() for name in reversed(spec.ACTIVATIONS)}
    assert spec.for_each(spec.ACTIVATIONS, table) == [n.upper() for n in spec.ACTIVATIONS]
    with pytest.raises(NotImplementedError, match="activation another: no branch here"):
        spec.for_each(ONE_MORE, table)
    with pytest.raises(NotImplementedError, match="activation another: not known here"):
        spec.for_each(spec.ACTIVATIONS, ONE_MORE)


def test_one_more_activation_is_an_error_on_the_cpu(monkeypatch):
    pytest.importorskip("numba")
    from fastmlp.kernels.cpu.numbers import block_activations

    monkeypatch.setattr(spec, "ACTIVATIONS", ONE_MORE)
    with pytest.raises(NotImplementedError, match="another"):
        block_activations.passes(np.float32)


def test_one_more_activation_is_an_error_on_the_gpu(monkeypatch):
    pytest.importorskip("triton")
    from fastmlp.kernels.gpu import models

    monkeypatch.setattr(spec, "ACTIVATIONS", ONE_MORE)
    with pytest.raises(NotImplementedError, match="another"):
        models.jacobian_of((spec.MLP, 1, 2, 2, 1, 0), (0.0,))


def test_layers_know_what_is_alike_in_them():
    layers = spec.Layers((1, 4, 4, 1), (True,) * 3, ("tanh", "tanh", "sin"), (0.0,) * 3, (), False)
    assert layers.hidden_activation == "tanh"
    assert layers.shapes == ((4, 1), (4,), (4, 4), (4,), (1, 4), (1,))
    steep = layers._replace(activations=("leaky_relu",) * 2 + ("sin",), slopes=(0.2, 0.2, 0.0))
    assert steep.hidden_activation is None
    assert layers._replace(activations=("tanh", "relu", "sin")).hidden_activation is None
