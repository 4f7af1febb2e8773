"""Ontologies: the categories of a labelling job with their wordings and limits, in YAML or JSON files."""

from text2seg.ontology.categories import Category, Ontology, ontology_of_queries, queries_of, with_ids_from
from text2seg.ontology.read import ontology_from_dict, read_ontology
from text2seg.ontology.thresholds import write_thresholds

__all__ = [
    "Category",
    "Ontology",
    "ontology_from_dict",
    "ontology_of_queries",
    "queries_of",
    "read_ontology",
    "with_ids_from",
    "write_thresholds",
]
