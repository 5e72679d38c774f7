"""Makes every wrong input with the library, as a user would, and prints {title: outcome} as JSON."""

import dataclasses
import json
import sys

import jax

from mistakes.kinds import ALL
from mistakes.run import outcome

jax.config.update("jax_traceback_filtering", "off")
print(json.dumps({title: dataclasses.asdict(outcome(mistake.ours)) for title, mistake in ALL.items()}), file=sys.stdout)
