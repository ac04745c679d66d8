"""Outputs and rows of ∂y/∂θ of every model, a tile of rows at a time, in float64.

A tile holds ``TILE`` rows and is stored column by column: inputs x [F, TILE], outputs f [M, TILE]
and the Jacobian of one output J [P, TILE] are flat, so that every inner loop runs over rows and
vectorises. θ is flat, in the order of ``module.parameters()``. Two verbs a model: *forward* fills f
and a workspace, *jacobian* turns the workspace into the rows ∂f_m/∂θ of one output m.

A model is described by integers ``net`` and numbers ``reals``:

==========  =================================================================  ===================
model       net                                                                reals
==========  =================================================================  ===================
MLP         [MLP, L, n_0 … n_L, has_bias_1 … has_bias_L, σ_1 … σ_L]            slope of σ_1 … σ_L
AdditiveMLP [ADDITIVE, F, H, M, has_bias, σ]                                   slope of σ
SineSum     [SINE, 1, W, 1, has_amplitude, has_phase]                          turns, factor
==========  =================================================================  ===================

The slope is that of leaky ReLU, unused elsewhere. An ElementwiseMLP is the MLP 1 → H → 1.
"""

from ... import spec
from ...spec import ADDITIVE, MLP, SINE
from ..layers.jacobian import mlp_forward, mlp_jacobian
from ..machine.jit import inner
from ..sines.jacobian import sine_forward, sine_jacobian
from ..subnet.jacobian import additive_forward, additive_jacobian

# what the choices below have branches for
spec.for_each(spec.MODELS, (MLP, ADDITIVE, SINE), "model")


@inner
def workspace_rows(net):
    """Rows of the workspace."""
    if net[0] == MLP:
        total, widest = 0, 0
        for l in range(net[1]):
            total += net[3 + l]
            widest = max(widest, net[3 + l])
        return 2 * total + 2 * widest
    if net[0] == ADDITIVE:
        return net[1] + 3
    return 2 * net[2]


@inner
def sizes(net):
    """Inputs F and outputs M of a model."""
    if net[0] == MLP:
        return net[2], net[2 + net[1]]
    return net[1], net[3]


@inner
def forward(net, reals, theta, x, n, work, f):
    """f(x; θ) of the first n rows of a tile."""
    if net[0] == MLP:
        mlp_forward(net, reals, theta, x, n, work, f)
    elif net[0] == ADDITIVE:
        additive_forward(net, reals, theta, x, n, work, f)
    else:
        sine_forward(net, reals, theta, x, n, work, f)


@inner
def jacobian(net, reals, theta, x, n, work, m, out):
    """∂f_m/∂θ of the first n rows of the tile that :func:`forward` has just seen."""
    if net[0] == MLP:
        mlp_jacobian(net, theta, x, n, work, m, out)
    elif net[0] == ADDITIVE:
        additive_jacobian(net, reals, theta, x, n, work, m, out)
    else:
        sine_jacobian(net, reals, theta, x, n, work, out)
