"""What the clients of a population keep between rounds, and where it lies."""

from jaxfed.simulation.population.population import Population as Population
from jaxfed.simulation.population.population import open_population as open_population
