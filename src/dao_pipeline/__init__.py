"""dao-pipeline: crystal structure prediction with DAO-P and DAO-G, from crystals to ranked candidates."""

__version__ = "0.1.0"
