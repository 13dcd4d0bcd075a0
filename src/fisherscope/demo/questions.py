"""Question and answer pairs from the docstrings of a module's public functions and classes."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

# The form that the chat template of the demo tokenizer gives a user's turn.
PROMPT = "Question: {question}\nAnswer:"
FUNCTION_QUESTIONS = (
    "What does {name} do?",
    "What does {call} do?",
    "Explain {name} in a sentence.",
    "What happens when I call {call}?",
    "When would I use the function {name}?",
)
CLASS_QUESTIONS = (
    "What is {name}?",
    "What is the class {name} for?",
    "Describe the class {name}.",
)
SHORTEST, ENOUGH, LONGEST = 20, 80, 260
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'`(])")


def questions(files: dict[str, str]) -> list[dict[str, str]]:
    """Make one row for each documented public function, class and method.

    Args:
        files: Dotted module name to source text.

    Returns:
        Rows ``{"id", "prompt", "completion"}``, the id being the qualified name; the
        first definition of a name and the first use of an answer count.
    """
    rows: dict[str, dict[str, str]] = {}
    answers: set[str] = set()
    for module, text in files.items():
        try:
            tree = ast.parse(text)
        # ValueError: null bytes, before Python 3.11.4.
        except (SyntaxError, ValueError):
            continue
        if any(part.startswith("_") for part in module.split(".")):
            continue
        for name, node in _definitions(tree, module):
            answer = first_sentences(ast.get_docstring(node) or "")
            if answer and name not in rows and answer not in answers:
                answers.add(answer)
                prompt = PROMPT.format(question=_question(name, node))
                rows[name] = {"id": name, "prompt": prompt, "completion": f" {answer}"}
    return list(rows.values())


def first_sentences(docstring: str) -> str:
    """Take the first sentence of a docstring, and the next ones while it is short.

    Args:
        docstring: Text without common indentation.

    Returns:
        20 to 260 characters on one line that end a sentence; empty where the docstring
        does not begin with such a sentence.
    """
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    answer = ""
    for sentence in SENTENCE_END.split(paragraph):
        longer = f"{answer} {sentence}".strip()
        if len(longer) > LONGEST or not sentence.endswith((".", "!", "?")):
            break
        answer = longer
        if len(answer) >= ENOUGH:
            break
    # Some docstrings begin with a signature ("dedent(text) -> str"): not an explanation.
    if len(answer) < SHORTEST or "->" in answer:
        return ""
    return answer


def _definitions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, Definition]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Definition):
            if node.name.startswith("_"):
                continue
            name = f"{prefix}.{node.name}"
            yield name, node
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node, name)
        elif isinstance(node, ast.If | ast.Try):
            yield from _definitions(node, prefix)


def _question(name: str, node: Definition) -> str:
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    choice = int.from_bytes(digest, "big")
    if isinstance(node, ast.ClassDef):
        return CLASS_QUESTIONS[choice % len(CLASS_QUESTIONS)].format(name=name)
    names = [argument.arg for argument in node.args.posonlyargs + node.args.args]
    shown = ", ".join(argument for argument in names if argument not in {"self", "cls"})
    template = FUNCTION_QUESTIONS[choice % len(FUNCTION_QUESTIONS)]
    return template.format(name=name, call=f"{name}({shown})")
