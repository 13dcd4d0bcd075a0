"""Any batch or file of data becomes examples with ids, masks and labels."""

from fisherscope.data.examples import Batch, Example, batches, collate
from fisherscope.data.identity import content_hash, content_id, fingerprint, halves, keyed_uniforms
from fisherscope.data.ingestion import examples
from fisherscope.data.jsonl import read_jsonl
from fisherscope.data.masking import mask_tokens

__all__ = [
    "Batch",
    "Example",
    "batches",
    "collate",
    "content_hash",
    "content_id",
    "examples",
    "fingerprint",
    "halves",
    "keyed_uniforms",
    "mask_tokens",
    "read_jsonl",
]
