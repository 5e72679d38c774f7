"""Building blocks of a program: sites, residuals, noise, and the integrator that turns a field into a step."""
