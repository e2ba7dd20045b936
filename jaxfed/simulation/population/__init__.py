"""The states that a population's clients keep between rounds, and where they are stored."""

from jaxfed.simulation.population.population import Population as Population
from jaxfed.simulation.population.population import open_population as open_population
