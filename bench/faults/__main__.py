"""Run this part alone, and print what it measured."""

from bench.faults import PART
from bench.plan import alone

alone(PART)
