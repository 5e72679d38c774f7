"""Backends: each turns a model and data into a Posterior."""

from physppl.inference.draws import DrawsPosterior as DrawsPosterior
from physppl.inference.draws import from_numpyro as from_numpyro
from physppl.inference.hmc import HMC as HMC
from physppl.inference.laplace import Laplace as Laplace
from physppl.inference.laplace import LaplacePosterior as LaplacePosterior
