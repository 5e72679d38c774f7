"""Backends: each turns a model and data into a Posterior."""

from physppl.inference.diversity import Anchored, Bootstrap, Diversity, RandomStarts
from physppl.inference.draws import DrawsPosterior, from_numpyro
from physppl.inference.ensemble import Ensemble, EnsemblePosterior, disagreement, widest_disagreement
from physppl.inference.function_objectives import JointKL, Printed, Projected
from physppl.inference.function_space import Slack
from physppl.inference.function_vi import FunctionPosterior, FunctionSpaceVI
from physppl.inference.gaussian import LaplacePosterior
from physppl.inference.hmc import HMC
from physppl.inference.laplace import Laplace
from physppl.inference.nested import NestedLaplace, NestedPosterior
from physppl.inference.neural_linear import NeuralLinear
from physppl.inference.search import Adam, Newton
from physppl.inference.structured import StructuredLaplace, StructuredPosterior
from physppl.inference.structures import DataSpace, Diagonal, Full, LastLayer, LowRank, Pathwise
from physppl.inference.svi import SVI, VariationalPosterior

__all__ = [
    "Adam",
    "Anchored",
    "Bootstrap",
    "DataSpace",
    "Diagonal",
    "Diversity",
    "DrawsPosterior",
    "Ensemble",
    "EnsemblePosterior",
    "Full",
    "FunctionPosterior",
    "FunctionSpaceVI",
    "HMC",
    "JointKL",
    "Laplace",
    "LaplacePosterior",
    "LastLayer",
    "LowRank",
    "NestedLaplace",
    "NestedPosterior",
    "NeuralLinear",
    "Newton",
    "Pathwise",
    "Printed",
    "Projected",
    "RandomStarts",
    "SVI",
    "Slack",
    "StructuredLaplace",
    "StructuredPosterior",
    "VariationalPosterior",
    "disagreement",
    "from_numpyro",
    "widest_disagreement",
]
