"""Backends: each turns a model and data into a Posterior."""

from physppl.inference.diversity import Anchored as Anchored
from physppl.inference.diversity import Bootstrap as Bootstrap
from physppl.inference.diversity import Diversity as Diversity
from physppl.inference.diversity import RandomStarts as RandomStarts
from physppl.inference.draws import DrawsPosterior as DrawsPosterior
from physppl.inference.draws import from_numpyro as from_numpyro
from physppl.inference.ensemble import Ensemble as Ensemble
from physppl.inference.ensemble import EnsemblePosterior as EnsemblePosterior
from physppl.inference.ensemble import disagreement as disagreement
from physppl.inference.function_space import JointKL as JointKL
from physppl.inference.function_space import Printed as Printed
from physppl.inference.function_space import Projected as Projected
from physppl.inference.function_space import Slack as Slack
from physppl.inference.function_vi import FunctionPosterior as FunctionPosterior
from physppl.inference.function_vi import FunctionSpaceVI as FunctionSpaceVI
from physppl.inference.hmc import HMC as HMC
from physppl.inference.laplace import Laplace as Laplace
from physppl.inference.laplace import LaplacePosterior as LaplacePosterior
from physppl.inference.neural_linear import NeuralLinear as NeuralLinear
from physppl.inference.search import Adam as Adam
from physppl.inference.search import Newton as Newton
