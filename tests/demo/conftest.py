import pytest

from fisherscope.demo.corpora import Corpora, read_corpora
from fisherscope.demo.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def corpora():
    return read_corpora()


@pytest.fixture(scope="session")
def small(corpora):
    """A cut of the real corpora that trains in a blink."""
    return Corpora(
        documents={
            name: tuple(text[:8000] for text in texts[:4])
            for name, texts in corpora.documents.items()
        },
        lessons=corpora.lessons[:40],
        held_out={name: rows[:6] for name, rows in corpora.held_out.items()},
    )


@pytest.fixture(scope="session")
def tokenizer(small):
    return train_tokenizer(
        (text for texts in small.documents.values() for text in texts), vocabulary=600
    )
