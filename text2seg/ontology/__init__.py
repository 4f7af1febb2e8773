"""What a labelling job looks for: categories, each with its wordings and limits, read from a YAML or JSON file."""

from text2seg.ontology.categories import Category, Ontology, ontology_of_queries, queries_of, with_ids_from
from text2seg.ontology.read import read_ontology
from text2seg.ontology.write import write_thresholds

__all__ = [
    "Category",
    "Ontology",
    "ontology_of_queries",
    "queries_of",
    "read_ontology",
    "with_ids_from",
    "write_thresholds",
]
