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
from ..layers import jacobian as layers
from ..machine.jit import inner, named
from ..sines import jacobian as sines
from ..subnet import jacobian as subnet

# what the choices below have branches for
spec.for_each(spec.MODELS, (MLP, ADDITIVE, SINE), "model")


@inner
def workspace_rows(net):
    """Rows of the workspace."""
    model = named(net, layers.WORDS)
    if model.model == MLP:
        widths, _, _ = layers.parts(net, model.n_layers)
        total, widest = 0, 0
        for l in range(model.n_layers):
            total += widths[l + 1]
            widest = max(widest, widths[l + 1])
        return 2 * total + 2 * widest
    if model.model == ADDITIVE:
        return named(net, subnet.WORDS).n_in + 3
    return 2 * named(net, sines.WORDS).width


@inner
def sizes(net):
    """Inputs F and outputs M of a model."""
    model = named(net, layers.WORDS)
    if model.model == MLP:
        widths, _, _ = layers.parts(net, model.n_layers)
        return widths[0], widths[model.n_layers]
    # sines have a number for either, as subnets
    model = named(net, subnet.WORDS)
    return model.n_in, model.n_out


@inner
def forward(net, reals, theta, x, n, work, f):
    """f(x; θ) of the first n rows of a tile."""
    kind = named(net, layers.WORDS).model
    if kind == MLP:
        layers.mlp_forward(net, reals, theta, x, n, work, f)
    elif kind == ADDITIVE:
        subnet.additive_forward(net, reals, theta, x, n, work, f)
    else:
        sines.sine_forward(net, reals, theta, x, n, work, f)


@inner
def jacobian(net, reals, theta, x, n, work, m, out):
    """∂f_m/∂θ of the first n rows of the tile that :func:`forward` has just seen."""
    kind = named(net, layers.WORDS).model
    if kind == MLP:
        layers.mlp_jacobian(net, theta, x, n, work, m, out)
    elif kind == ADDITIVE:
        subnet.additive_jacobian(net, reals, theta, x, n, work, m, out)
    else:
        sines.sine_jacobian(net, reals, theta, x, n, work, out)
