"""Backends: each turns a model and data into a Posterior."""

from physppl.inference.hmc import HMC as HMC
from physppl.inference.laplace import Laplace as Laplace
