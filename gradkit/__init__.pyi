# The public index: every name of gradkit and the module that defines it. `gradkit.__getattr__`
# reads this file, and so do the contract test and `gradkit list`: a name added here is imported,
# tested and listed.

from gradkit.core import Point as Point
from gradkit.core import Problem as Problem
from gradkit.core import metrics as metrics
from gradkit.core import observe as observe
from gradkit.curvature.hessian import hessian as hessian
from gradkit.krylov.cg import Solve as Solve
from gradkit.krylov.cg import cg as cg
from gradkit.krylov.drivers import in_jit as in_jit
from gradkit.krylov.drivers import on_host as on_host
from gradkit.operators import Operator as Operator
from gradkit.optimizers.adam import adam as adam
from gradkit.optimizers.adamw import adamw as adamw
from gradkit.optimizers.newton_cg import newton_cg as newton_cg
from gradkit.optimizers.newton_cg import scale_by_newton_cg as scale_by_newton_cg
from gradkit.optimizers.rmsprop import rmsprop as rmsprop
from gradkit.optimizers.sgd import sgd as sgd
from gradkit.spectra.condition import Interval as Interval
from gradkit.spectra.condition import condition_number as condition_number
from gradkit.spectra.density import Density as Density
from gradkit.spectra.density import density as density
from gradkit.spectra.extremes import Eigenpairs as Eigenpairs
from gradkit.spectra.extremes import eigsh as eigsh
from gradkit.spectra.summary import Spectrum as Spectrum
from gradkit.spectra.summary import spectrum as spectrum
from gradkit.transforms.adaptive import scale_by_adam as scale_by_adam
from gradkit.transforms.adaptive import scale_by_rms as scale_by_rms
from gradkit.transforms.adaptive import scale_by_stddev as scale_by_stddev
from gradkit.transforms.chain import chain as chain
from gradkit.transforms.clipping import clip as clip
from gradkit.transforms.clipping import clip_by_global_norm as clip_by_global_norm
from gradkit.transforms.decay import add_decayed_weights as add_decayed_weights
from gradkit.transforms.learning_rate import scale_by_learning_rate as scale_by_learning_rate
from gradkit.transforms.line_search import line_search as line_search
from gradkit.transforms.moments import bias_correction as bias_correction
from gradkit.transforms.moments import ema as ema
from gradkit.transforms.momentum import heavy_ball as heavy_ball

__version__: str
