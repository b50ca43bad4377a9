"""Linked lists and trees of the public setup code: into the real sandbox and out of it, as plain values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from problem_rows import PRELUDE, load_one, reference, references_pass
from unhack.problems.nodes import FLATTENER_CODE, LIST_CODE, TREE_CODE, expected_nodes

TREE = st.lists(st.one_of(st.none(), st.integers(-3, 3)), max_size=12).map(lambda rest: [7, *rest])


NODES: dict[str, Any] = {}
exec(LIST_CODE + TREE_CODE + FLATTENER_CODE, NODES)  # our own setup code, which runs in the sandbox otherwise


@given(TREE)
@settings(max_examples=60)
def test_expected_trees_are_what_the_flattener_makes_of_the_built_tree(values: list[int | None]) -> None:
    assert expected_nodes("tree", values) == NODES["unhack_tree_values"](NODES["tree_node"](values))


def test_lists_and_trees_that_do_not_end_are_the_submissions_error() -> None:
    ring, snake = NODES["list_node"]([1, 2]), NODES["tree_node"]([1])
    ring.next.next, snake.left = ring, snake
    for flatten, node in (("unhack_list_values", ring), ("unhack_tree_values", snake)):
        with pytest.raises(ValueError, match="does not end"):
            NODES[flatten](node)


REVERSE = reference(
    "flip", "head: Optional['ListNode']", "Optional['ListNode']",
    "last = None\n        while head:\n            head.next, last, head = last, head, head.next\n        return last",
)  # fmt: skip
MERGE = reference("merge", "lists: List[Optional['ListNode']]", "List[int]", "return sorted(x.val for x in lists if x)")
MIRROR = reference(
    "mirror", "root: 'TreeNode'", "'TreeNode'",
    "if root: root.left, root.right = self.mirror(root.right), self.mirror(root.left)\n        return root",
)  # fmt: skip


def test_lists_and_trees_go_in_and_come_out_of_the_real_sandbox() -> None:
    lists = ["is_same_list({f}(head = list_node([1, 2, 3])), list_node([3, 2, 1]))", "is_same_list({f}(None), None)"]
    flip = load_one(solution=REVERSE, tests=lists, input_output=[{"input": "head = [4,5]", "output": "[5,4]"}])
    merge = load_one(solution=MERGE, tests=["{f}(lists = [[3], [], [1, 2]]) == [1, 3]"])
    trees = ["is_same_tree({f}(root = tree_node([1, 2, 3, None, 4])), tree_node([1, 3, 2, None, None, 4]))"]
    mirror = load_one(solution=MIRROR, tests=trees, input_output=[{"input": "root = []", "output": "[]"}])
    assert [len(flip.cases), len(merge.cases), len(mirror.cases)] == [3, 1, 2]
    assert references_pass(flip, merge, mirror) == [True, True, True]
    as_list = replace(flip, reference=REVERSE.replace("return last", "return [3, 2, 1]"))
    unchanged = replace(mirror, reference=MIRROR.replace("if root: ", "if not root: "))
    assert references_pass(as_list, unchanged) == [False, False]


def test_a_setup_that_has_the_node_classes_keeps_its_own() -> None:
    own = PRELUDE + LIST_CODE
    problem = load_one(solution=REVERSE, tests=["is_same_list({f}(list_node([1])), list_node([1]))"], prompt=own)
    assert problem.setup_code == own + FLATTENER_CODE and load_one(prompt=own).setup_code == own
