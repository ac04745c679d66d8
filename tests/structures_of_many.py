"""Structures of which there are ensembles, one or two of each kind; each takes rows of 3."""

import fastmlp

MODELS = {
    "sines": lambda: fastmlp.SineSum(3),
    "sines_all": lambda: fastmlp.SineSum(3, learn_amplitude=True, learn_phase=True, scale=2.0),
    "elementwise": lambda: fastmlp.ElementwiseMLP(5),
    "elementwise_tanh": lambda: fastmlp.ElementwiseMLP(5, activation="tanh", bias=False),
    "elementwise_deep": lambda: fastmlp.ElementwiseMLP([5, 4]),
    "additive": lambda: fastmlp.AdditiveMLP(3, 4, 2),
    "additive_silu": lambda: fastmlp.AdditiveMLP(3, 4, 1, activation="silu", bias=False),
    "per_feature": lambda: fastmlp.AdditiveMLP(3, 4, 2, shared=False),
    "mlp": lambda: fastmlp.MLP(3, [4, 5], 2, activation="sigmoid"),
    "mlp_no_bias": lambda: fastmlp.MLP(3, [4], 1, bias=False, output_activation="tanh"),
}
